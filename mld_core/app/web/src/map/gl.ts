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

/** A browser holds sixteen contexts, and those of canvases that are gone until it tidies up. */
const release = (gl: WebGL2RenderingContext): void => gl.getExtension("WEBGL_lose_context")?.loseContext();

/** A program with its attributes, of the map and of the 3D view. */
export class GlProgram {
  /** Whether the processor draws for a card here: asked once, since each question is a context. */
  static #slow = false;
  readonly #buffers = new Map<string, { buffer: WebGLBuffer; bytes: number }>();

  private constructor(
    readonly gl: WebGL2RenderingContext,
    private readonly program: WebGLProgram,
  ) {
    gl.useProgram(program);
  }

  /** null where there is no WebGL2; `solid`: with depth, and not where the processor would have to draw it. */
  static on(canvas: HTMLCanvasElement, vertex: string, fragment: string, solid = false): GlProgram | null {
    const gl = solid && this.#slow ? null : canvas.getContext("webgl2", { antialias: false, depth: solid });
    if (!gl) return null;
    const told = solid ? gl.getExtension("WEBGL_debug_renderer_info") : null;
    this.#slow ||=
      told !== null &&
      /swiftshader|llvmpipe|software/i.test(String(gl.getParameter(told.UNMASKED_RENDERER_WEBGL)));
    if (solid && this.#slow) return (release(gl), null);
    const program = gl.createProgram();
    for (const [kind, text] of [
      [gl.VERTEX_SHADER, vertex],
      [gl.FRAGMENT_SHADER, fragment],
    ] as const) {
      const shader = gl.createShader(kind);
      if (!shader) return null;
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    return gl.getProgramParameter(program, gl.LINK_STATUS) ? new GlProgram(gl, program) : null;
  }

  /** Values of an attribute, one a point; memory of the card that is large enough is used again. */
  upload(name: string, values: Float32Array | Uint8Array): void {
    const { gl } = this;
    const held = this.#buffers.get(name) ?? { buffer: gl.createBuffer(), bytes: -1 };
    this.#buffers.set(name, held);
    gl.bindBuffer(gl.ARRAY_BUFFER, held.buffer);
    if (values.byteLength <= held.bytes) gl.bufferSubData(gl.ARRAY_BUFFER, 0, values);
    else gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    held.bytes = Math.max(held.bytes, values.byteLength);
    const place = gl.getAttribLocation(this.program, name);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, 1, values instanceof Uint8Array ? gl.UNSIGNED_BYTE : gl.FLOAT, false, 0, 0);
  }

  close(): void {
    release(this.gl);
  }

  place(name: string): WebGLUniformLocation | null {
    return this.gl.getUniformLocation(this.program, name);
  }
}

export class GlPlot {
  #rows = 0;

  private constructor(readonly program: GlProgram) {
    const { gl } = program;
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  /** null where there is no WebGL2. */
  static on(canvas: HTMLCanvasElement): GlPlot | null {
    const program = GlProgram.on(canvas, VERTEX, FRAGMENT);
    return program && new GlPlot(program);
  }

  upload(cloud: Cloud): void {
    this.#rows = cloud.rows;
    for (const name of ["x", "y", "colour", "state"] as const) this.program.upload(name, cloud[name]);
  }

  draw(view: View, size: number, look: Look): void {
    const { gl } = this.program;
    const { width, height } = gl.canvas;
    const place = (name: string): WebGLUniformLocation | null => this.program.place(name);
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
