"use strict";

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
    this.canvas = gl.canvas;
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
      gl.vertexAttribPointer(0, 3, cloud.levels > 65535 ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT, true, 0, 0);
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
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
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
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, this.canvas.width, this.canvas.height, 0, gl.RGBA, gl.UNSIGNED_BYTE, null);
    gl.bindRenderbuffer(gl.RENDERBUFFER, this.depth);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, this.canvas.width, this.canvas.height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.target);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.texture, 0);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, this.depth);
    this.draw(matrix, options, true);
    const bytes = new Uint8Array(4 * side * side);
    gl.readPixels(x - reach, this.canvas.height - 1 - y - reach, side, side, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
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
  constructor(clouds, aspect) {
    const low = [0, 1, 2].map((k) => Math.min(...clouds.map((cloud) => cloud.box[0][k])));
    const high = [0, 1, 2].map((k) => Math.max(...clouds.map((cloud) => cloud.box[1][k])));
    this.low = low;
    this.high = high;
    this.radius = Math.max(0.5 * Math.hypot(...high.map((value, k) => value - low[k])), 1e-6);
    this.home(aspect);
  }

  // As near as all corners of the box allow.
  home(aspect) {
    this.middle = this.low.map((value, k) => (value + this.high[k]) / 2);
    [this.azimuth, this.elevation, this.distance] = [-0.96, 0.5, 0.1 * this.radius];
    const { right, up, towards } = this.axes();
    const along = (axis, corner) => axis.reduce((sum, value, k) => sum + value * (corner[k] - this.middle[k]), 0);
    for (let number = 0; number < 8; number++) {
      const corner = [0, 1, 2].map((k) => (number & (1 << k) ? this.high : this.low)[k]);
      const width = (2.1 * Math.abs(along(right, corner))) / aspect, height = 2.2 * Math.abs(along(up, corner));
      this.distance = Math.max(this.distance, along(towards, corner) + Math.max(width, height));
    }
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
