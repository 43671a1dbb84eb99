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

// ---- drawing ------------------------------------------------------------------------------------------------------

const VERTEX = `#version 300 es
in vec3 place;
in vec3 color;
uniform mat4 matrix;
uniform vec3 low, extent;
uniform float size, pixels, top;
uniform int first, chosen;
out vec3 ink;
flat out uint number;
void main() {
  gl_Position = matrix * vec4(low + place * extent, 1.0);
  number = uint(first + gl_VertexID + 1);
  bool selected = first + gl_VertexID == chosen;
  gl_PointSize = clamp(size * pixels / gl_Position.w, 1.0, 60.0) * (selected ? 2.5 : 1.0) + (selected ? 5.0 : 0.0);
  ink = selected ? vec3(1.0, 0.0, 0.8) : color;
  if (low.z + place.z * extent.z > top) gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec3 ink;
flat in uint number;
uniform bool picking;
out vec4 result;
void main() {
  if (dot(gl_PointCoord - 0.5, gl_PointCoord - 0.5) > 0.25) discard;
  if (picking) {
    uvec4 bytes = (uvec4(number) >> uvec4(0u, 8u, 16u, 24u)) & 255u;
    result = vec4(bytes) / 255.0;
  } else {
    result = vec4(ink, 1.0);
  }
}`;

function compile(gl) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.bindAttribLocation(program, 0, "place");
  gl.bindAttribLocation(program, 1, "color");
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  return program;
}

class Renderer {
  constructor(gl, clouds) {
    this.gl = gl;
    this.program = compile(gl);
    this.uniforms = {};
    for (const name of ["matrix", "low", "extent", "size", "pixels", "top", "first", "chosen", "picking"]) {
      this.uniforms[name] = gl.getUniformLocation(this.program, name);
    }
    let first = 0;
    this.parts = clouds.map((cloud) => {
      const part = { cloud, first, array: gl.createVertexArray(), colors: gl.createBuffer() };
      first += cloud.count;
      gl.bindVertexArray(part.array);
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, cloud.places, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(0);
      gl.vertexAttribPointer(0, 3, gl.UNSIGNED_SHORT, true, 0, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, part.colors);
      gl.enableVertexAttribArray(1);
      gl.vertexAttribPointer(1, 3, gl.UNSIGNED_BYTE, true, 0, 0);
      return part;
    });
    this.target = gl.createFramebuffer();
    this.texture = gl.createTexture();
    this.depth = gl.createRenderbuffer();
  }

  paint(number, colors) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.parts[number].colors);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, colors, this.gl.DYNAMIC_DRAW);
  }

  draw(matrix, options, picking = false) {
    const gl = this.gl;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...(picking ? [0, 0, 0, 0] : [1, 1, 1, 1]));
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    gl.uniformMatrix4fv(this.uniforms.matrix, false, matrix);
    gl.uniform1f(this.uniforms.top, options.top);
    gl.uniform1f(this.uniforms.pixels, options.pixels);
    gl.uniform1i(this.uniforms.chosen, picking ? -1 : options.chosen);
    gl.uniform1i(this.uniforms.picking, picking ? 1 : 0);
    for (const { cloud, first, array } of this.parts) {
      gl.bindVertexArray(array);
      gl.uniform3fv(this.uniforms.low, cloud.low);
      gl.uniform3fv(this.uniforms.extent, cloud.extent);
      gl.uniform1f(this.uniforms.size, cloud.spacing * options.size);
      gl.uniform1i(this.uniforms.first, first);
      gl.drawArrays(gl.POINTS, 0, cloud.count);
    }
  }

  // The number over all clouds of the point nearest to a pixel, within four pixels of it; -1 for none.
  pick(matrix, options, x, y) {
    const gl = this.gl, reach = 4, side = 2 * reach + 1;
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, canvas.width, canvas.height, 0, gl.RGBA, gl.UNSIGNED_BYTE, null);
    gl.bindRenderbuffer(gl.RENDERBUFFER, this.depth);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, canvas.width, canvas.height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.texture, 0);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, this.depth);
    this.draw(matrix, options, true);
    const bytes = new Uint8Array(4 * side * side);
    gl.readPixels(x - reach, canvas.height - 1 - y - reach, side, side, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    const numbers = new Uint32Array(bytes.buffer);
    let best = -1, distance = Infinity;
    numbers.forEach((number, place) => {
      const far = (place % side - reach) ** 2 + (Math.floor(place / side) - reach) ** 2;
      if (number > 0 && far < distance) [best, distance] = [number - 1, far];
    });
    return best;
  }
}

// ---- camera -------------------------------------------------------------------------------------------------------

class Camera {
  constructor(clouds) {
    const low = [0, 1, 2].map((k) => Math.min(...clouds.map((cloud) => cloud.low[k])));
    const high = [0, 1, 2].map((k) => Math.max(...clouds.map((cloud) => cloud.low[k] + cloud.extent[k])));
    this.low = low;
    this.high = high;
    this.radius = Math.max(0.5 * Math.hypot(...high.map((value, k) => value - low[k])), 1e-6);
    this.home();
  }

  home() {
    this.middle = this.low.map((value, k) => (value + this.high[k]) / 2);
    [this.azimuth, this.elevation, this.distance] = [-0.96, 0.5, 2.2 * this.radius];
  }

  axes() {
    const [a, e] = [this.azimuth, this.elevation];
    const right = [-Math.sin(a), Math.cos(a), 0];
    const towards = [Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)];
    const up = [-Math.sin(e) * Math.cos(a), -Math.sin(e) * Math.sin(a), Math.cos(e)];
    return { right, up, towards };
  }

  turn(dx, dy) {
    this.azimuth -= 0.008 * dx;
    this.elevation = Math.min(Math.max(this.elevation + 0.008 * dy, -1.57), 1.57);
  }

  move(dx, dy, height) {
    const scale = this.distance / height, { right, up } = this.axes();
    this.middle = this.middle.map((value, k) => value - scale * dx * right[k] + scale * dy * up[k]);
  }

  zoom(steps) {
    this.distance = Math.min(Math.max(this.distance * Math.exp(0.0012 * steps), 0.02 * this.radius), 20 * this.radius);
  }

  // Column by column, as WebGL reads it: perspective with a field of view of 53 degrees (tangent of its half 1/2).
  matrix(aspect) {
    const { right, up, towards } = this.axes(), reach = this.distance + 2 * this.radius;
    const near = Math.max(this.distance - 2 * this.radius, 0.005 * this.distance), far = Math.max(reach, 1.01 * near);
    const rows = [right, up, towards].map((axis) => [...axis, -axis.reduce((sum, value, k) => sum + value * this.middle[k], 0)]);
    rows[2][3] -= this.distance; // depth along `towards`, negative in front
    const [a, b] = [(far + near) / (near - far), (2 * far * near) / (near - far)];
    const result = new Float32Array(16);
    for (let column = 0; column < 4; column++) {
      const [x, y, z] = rows.map((row) => row[column]);
      result.set([(2 / aspect) * x, 2 * y, a * z + (column === 3 ? b : 0), -z], 4 * column);
    }
    return result;
  }
}

// ---- the page -----------------------------------------------------------------------------------------------------

class Viewer {
  constructor(clouds, gl) {
    this.clouds = clouds;
    this.renderer = new Renderer(gl, clouds);
    this.camera = new Camera(clouds);
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
    const place = [0, 1, 2].map((k) => cloud.low[k] - cloud.offset[k] + (cloud.places[3 * row + k] / 65535) * cloud.extent[k]);
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
    const top = cut >= 1 ? high[2] + this.camera.radius : low[2] + cut * (high[2] - low[2]);
    return { size: Number(element("size").value), pixels: canvas.height, top, chosen };
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    this.matrix = this.camera.matrix(width / height);
    this.renderer.draw(this.matrix, this.options());
    this.clouds.forEach((cloud, number) => {
      const top = [cloud.low[0] + cloud.extent[0] / 2, cloud.low[1] + cloud.extent[1] / 2, cloud.low[2] + cloud.extent[2]];
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
      this.camera.home();
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
