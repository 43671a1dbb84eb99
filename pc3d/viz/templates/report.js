"use strict";

// The picture of an item lies in one sheet with all others.
function paint(element, sheet, item) {
  element.style.backgroundImage = `url(${sheet.source})`;
  const column = item % sheet.columns;
  const row = Math.floor(item / sheet.columns);
  element.style.backgroundPosition = `${-column * sheet.size}px ${-row * sheet.size}px`;
}

function attachPictures(holder, target, figure) {
  const card = holder.querySelector(".card");
  const selected = holder.querySelector(".selected");
  const describe = (item) => `${figure.items.names[item]} (${figure.items.classes[item]})`;
  target.on("plotly_hover", (event) => {
    const item = event.points[0].customdata;
    paint(card.querySelector(".picture"), figure.sheet, item);
    card.querySelector(".words").textContent = describe(item);
    const frame = holder.getBoundingClientRect();
    const left = event.event.clientX - frame.left + 14;
    card.style.left = `${Math.min(left, frame.width - 140)}px`;
    card.style.top = `${event.event.clientY - frame.top + 14}px`;
    card.hidden = false;
  });
  const hide = () => { card.hidden = true; };
  target.on("plotly_unhover", hide);
  target.addEventListener("mouseleave", hide);
  target.on("plotly_click", (event) => {
    const item = event.points[0].customdata;
    const picture = document.createElement("div");
    picture.className = "picture";
    paint(picture, figure.sheet, item);
    const words = document.createElement("span");
    words.textContent = `Item ${item}: ${describe(item)}`;
    selected.replaceChildren(picture, words);
  });
}

const drawn = [];
for (const holder of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(holder.querySelector("script").textContent);
  const target = holder.querySelector(".target");
  drawn.push(Plotly.newPlot(target, figure.data, figure.layout, { responsive: true, displaylogo: false }).then(() => {
    if (holder.classList.contains("map")) attachPictures(holder, target, figure);
  }));
}
Promise.all(drawn).then(() => { document.body.dataset.ready = "yes"; });
