"use strict";

const WITHOUT = [190, 190, 190]; // a cloud that does not have the mode
const ARRAYS = { u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array };
const manifest = JSON.parse(document.getElementById("manifest").textContent);
const canvas = document.getElementById("canvas");
const labels = document.getElementById("labels");
const element = (id) => document.getElementById(id);

async function unpack() {
  const text = atob(element("data").textContent.trim());
  const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// ---- the page -----------------------------------------------------------------------------------------------------

class Viewer {
  constructor(clouds, gl) {
    this.clouds = clouds;
    this.renderer = new Renderer(gl, clouds);
    this.camera = new Camera(clouds, canvas.clientWidth / canvas.clientHeight);
    this.chosen = null;
    this.similarity = null;
    this.buttons = new Map();
    this.names = clouds.map((cloud) => {
      const label = document.createElement("span");
      label.textContent = cloud.name;
      labels.append(label);
      return label;
    });
    for (const mode of manifest.modes) this.addMode(mode);
    this.show(manifest.modes[manifest.first]);
    this.listen();
  }

  addMode(mode) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = mode.name;
    button.disabled = Boolean(mode.clickable); // until there is a point to compare with
    button.addEventListener("click", () => this.show(mode));
    this.buttons.set(mode.name, button);
    element("modes").append(button);
  }

  show(mode) {
    this.mode = mode;
    for (const [name, button] of this.buttons) button.setAttribute("aria-pressed", String(name === mode.name));
    this.clouds.forEach((cloud, number) => this.renderer.paint(number, this.colors(cloud, number)));
    this.showKey(mode);
    this.describe();
    this.draw();
  }

  colors(cloud, number) {
    if (this.mode.clickable) return this.similarity.colors[number];
    const layer = cloud.layers[this.mode.name];
    if (layer && !layer.palette) return layer.colors;
    const result = new Uint8Array(3 * cloud.count);
    for (let i = 0; i < cloud.count; i++) result.set(layer ? layer.palette[layer.colors[i]] : WITHOUT, 3 * i);
    return result;
  }

  showKey(mode) {
    const scale = mode.clickable ? this.similarity.scale : mode.scale;
    const entries = (mode.legend || []).map(([text, color]) => {
      const entry = document.createElement("div"), swatch = document.createElement("span");
      [entry.className, swatch.className] = ["entry", "swatch"];
      swatch.style.background = `rgb(${color})`;
      entry.append(swatch, text);
      return entry;
    });
    if (scale) {
      const bar = document.createElement("canvas"), ends = document.createElement("div");
      [bar.width, bar.height, ends.className] = [256, 1, "ends"];
      const pixels = new ImageData(256, 1);
      scale.gradient.forEach((color, i) => pixels.data.set([...color, 255], 4 * i));
      bar.getContext("2d").putImageData(pixels, 0, 0);
      for (const value of [scale.minimum, scale.maximum]) {
        const end = document.createElement("span");
        end.textContent = `${Number(value.toPrecision(3))} ${scale.unit}`;
        ends.append(end);
      }
      entries.push(bar, ends);
    }
    element("key").replaceChildren(...entries);
  }

  // Cosine of all features with that of a point, as colours of one scale over all clouds.
  compare(number, row) {
    const { embedding: own, channels } = this.clouds[number];
    const chosen = own.subarray(row * channels, (row + 1) * channels);
    const length = Math.hypot(...chosen);
    const values = this.clouds.map(({ embedding, count }) => {
      if (!embedding) return null;
      const result = new Float32Array(count);
      for (let i = 0; i < count; i++) {
        let product = 0, square = 0;
        for (let k = 0; k < channels; k++) {
          const value = embedding[i * channels + k];
          product += value * chosen[k];
          square += value * value;
        }
        result[i] = square && length ? product / (Math.sqrt(square) * length) : 0;
      }
      return result;
    });
    let minimum = Infinity, maximum = -Infinity;
    for (const list of values) {
      for (const value of list || []) {
        minimum = Math.min(minimum, value);
        maximum = Math.max(maximum, value);
      }
    }
    const { gradient } = manifest, span = maximum > minimum ? maximum - minimum : 1;
    const colors = values.map((list, cloud) => {
      const result = new Uint8Array(3 * this.clouds[cloud].count);
      for (let i = 0; i < this.clouds[cloud].count; i++) {
        result.set(list ? gradient[Math.round((255 * (list[i] - minimum)) / span)] : WITHOUT, 3 * i);
      }
      return result;
    });
    this.similarity = { values, colors, scale: { minimum, maximum, unit: "cosine", gradient } };
  }

  // Chooses a point by the number of its cloud and its row in it; null for none.
  select(point) {
    this.chosen = point;
    if (point && this.clouds[point.cloud].embedding) {
      this.compare(point.cloud, point.row);
      this.buttons.get(manifest.modes.find((mode) => mode.clickable).name).disabled = false;
      if (this.mode.clickable) {
        this.show(this.mode);
        return;
      }
    }
    this.describe();
    this.draw();
  }

  describe() {
    if (!this.chosen) {
      element("selection").textContent = "Click a point to select it.";
      return;
    }
    const { cloud: number, row } = this.chosen, cloud = this.clouds[number];
    const head = document.createElement("b");
    head.textContent = `${cloud.name}, point ${cloud.rows ? cloud.rows[row] : row}`;
    const place = [0, 1, 2].map((k) => cloud.low[k] - cloud.offset[k] + (cloud.places[3 * row + k] / cloud.levels) * cloud.extent[k]);
    const lines = [`at ${place.map((value) => Number(value.toFixed(3))).join(", ")}`];
    for (const [name, layer] of Object.entries(cloud.layers)) lines.push(`${name}: ${this.value(layer, row)}`);
    if (this.similarity && this.similarity.values[number]) {
      lines.push(`similarity to point: ${this.similarity.values[number][row].toFixed(3)}`);
    }
    const texts = lines.map((line) => {
      const text = document.createElement("div");
      text.textContent = line;
      return text;
    });
    element("selection").replaceChildren(head, ...texts);
  }

  value(layer, row) {
    if (!layer.values) {
      const color = layer.palette ? layer.palette[layer.colors[row]] : layer.colors.subarray(3 * row, 3 * row + 3);
      return Array.from(color).join(", ");
    }
    const value = layer.values[row];
    if (layer.names) return value < 0 ? "unlabelled" : (layer.names[value] ?? `class ${value}`);
    return `${Number((layer.minimum + value * layer.step).toPrecision(3))} ${layer.unit}`.trim();
  }

  options() {
    const cut = Number(element("top").value), { low, high } = this.camera;
    const chosen = this.chosen ? this.renderer.parts[this.chosen.cloud].first + this.chosen.row : -1;
    const top = cut >= 1 ? 1e30 : low[2] + cut * (high[2] - low[2]);
    return { size: Number(element("size").value), pixels: canvas.height, top, chosen };
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    this.matrix = this.camera.matrix(width / height);
    this.renderer.draw(this.matrix, this.options());
    this.clouds.forEach((cloud, number) => {
      const [low, high] = cloud.box, top = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[2]];
      const [x, y, , w] = [0, 1, 2, 3].map((k) => this.matrix[k] * top[0] + this.matrix[4 + k] * top[1] + this.matrix[8 + k] * top[2] + this.matrix[12 + k]);
      this.names[number].hidden = w <= 0;
      this.names[number].style.left = `${50 * (1 + x / w)}%`;
      this.names[number].style.top = `${50 * (1 - y / w)}%`;
    });
  }

  // The point under a place of the canvas, in pixels of the page.
  pointAt(x, y) {
    const ratio = canvas.width / canvas.clientWidth;
    const number = this.renderer.pick(this.matrix, this.options(), Math.round(x * ratio), Math.round(y * ratio));
    if (number < 0) return null;
    const cloud = this.renderer.parts.findLastIndex((part) => part.first <= number);
    return { cloud, row: number - this.renderer.parts[cloud].first };
  }

  listen() {
    let pressed = null;
    canvas.addEventListener("pointerdown", (event) => {
      pressed = { x: event.offsetX, y: event.offsetY, moved: false, shift: event.shiftKey || event.button === 2 };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!pressed) return;
      const [dx, dy] = [event.offsetX - pressed.x, event.offsetY - pressed.y];
      if (!pressed.moved && Math.hypot(dx, dy) < 4) return;
      if (pressed.shift) this.camera.move(dx, dy, canvas.clientHeight);
      else this.camera.turn(dx, dy);
      Object.assign(pressed, { x: event.offsetX, y: event.offsetY, moved: true });
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (pressed && !pressed.moved && !pressed.shift) this.select(this.pointAt(event.offsetX, event.offsetY));
      pressed = null;
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.camera.zoom(event.deltaY);
      this.draw();
    }, { passive: false });
    for (const id of ["size", "top"]) element(id).addEventListener("input", () => this.draw());
    element("home").addEventListener("click", () => {
      this.camera.home(canvas.clientWidth / canvas.clientHeight);
      this.draw();
    });
    element("picture").addEventListener("click", () => {
      this.draw(); // what was drawn is kept until the script ends only
      const link = document.createElement("a");
      link.download = "view.png";
      link.href = canvas.toDataURL("image/png");
      link.click();
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }
}

async function start() {
  const buffer = await unpack();
  const array = (entry) => entry && new ARRAYS[entry.type](buffer, entry.at, entry.length);
  const clouds = manifest.clouds.map((cloud) => ({
    ...cloud,
    places: array(cloud.places),
    rows: array(cloud.rows),
    embedding: array(cloud.embedding),
    layers: Object.fromEntries(
      cloud.layers.map((layer) => [layer.name, { ...layer, colors: array(layer.colors), values: array(layer.values) }]),
    ),
  }));
  const gl = canvas.getContext("webgl2", { antialias: true });
  if (!gl) throw new Error("this browser has no WebGL 2");
  window.viewer = new Viewer(clouds, gl);
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  const message = document.createElement("div");
  message.className = "failed";
  message.textContent = `The view cannot be shown: ${error.message}`;
  element("stage").append(message);
  throw error;
});
