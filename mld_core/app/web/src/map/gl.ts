/** Points by WebGL2: uploaded once, then moved by the graphics card. */
import { BEHIND, DIM, GREY, RIGHT, WRONG, type Cloud, type View } from "./cloud";
import type { Look } from "./raster";

const VERTEX = `#version 300 es
in float x; in float y; in float colour; in float state;
uniform vec4 view; uniform float size; uniform float pass; uniform vec3 colours[${GREY + 1}]; uniform vec4 flat_;
flat out vec4 ink;
void main() {
  gl_Position = state == pass ? vec4((x - view.x) * view.z, (y - view.y) * view.w, 0, 1) : vec4(2, 2, 2, 1);
  gl_PointSize = size;
  ink = flat_.a > 0.0 ? flat_ : vec4(colours[int(colour)], 1);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
flat in vec4 ink; out vec4 made;
void main() {
  float away = length(gl_PointCoord - 0.5) * 2.0;
  if (away > 1.0) discard;
  made = vec4(ink.rgb * ink.a, ink.a);
}`;

export class GlPlot {
  readonly #gl: WebGL2RenderingContext;
  readonly #program: WebGLProgram;
  readonly #buffers = new Map<string, WebGLBuffer>();
  #rows = 0;

  private constructor(gl: WebGL2RenderingContext, program: WebGLProgram) {
    this.#gl = gl;
    this.#program = program;
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  /** null where there is no WebGL2. */
  static on(canvas: HTMLCanvasElement): GlPlot | null {
    const gl = canvas.getContext("webgl2", { antialias: false, depth: false });
    if (!gl) return null;
    const program = gl.createProgram();
    for (const [kind, text] of [
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ] as const) {
      const shader = gl.createShader(kind);
      if (!shader) return null;
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    return gl.getProgramParameter(program, gl.LINK_STATUS) ? new GlPlot(gl, program) : null;
  }

  upload(cloud: Cloud): void {
    const gl = this.#gl;
    this.#rows = cloud.rows;
    for (const name of ["x", "y", "colour", "state"] as const) {
      const place = gl.getAttribLocation(this.#program, name);
      const buffer = this.#buffers.get(name) ?? gl.createBuffer();
      this.#buffers.set(name, buffer);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, cloud[name], gl.DYNAMIC_DRAW);
      gl.enableVertexAttribArray(place);
      const bytes = name === "colour" || name === "state";
      gl.vertexAttribPointer(place, 1, bytes ? gl.UNSIGNED_BYTE : gl.FLOAT, false, 0, 0);
    }
  }

  draw(view: View, size: number, look: Look): void {
    const gl = this.#gl;
    const { width, height } = gl.canvas;
    const place = (name: string): WebGLUniformLocation | null => gl.getUniformLocation(this.#program, name);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform4f(place("view"), view.x, view.y, (2 * view.scale) / width, (2 * view.scale) / height);
    gl.uniform1f(place("size"), size);
    gl.uniform3fv(
      place("colours"),
      look.colours.flatMap((one) => one.map((value) => value / 255)),
    );
    const [r, g, b] = look.dim.map((value) => value / 255) as [number, number, number];
    for (const pass of [BEHIND, DIM, RIGHT, WRONG]) {
      gl.uniform1f(place("pass"), pass);
      gl.uniform4f(place("flat_"), r, g, b, pass === DIM ? 0.35 : pass === BEHIND ? 0.7 : 0);
      gl.drawArrays(gl.POINTS, 0, this.#rows);
    }
  }
}
