/** Points in 3D by WebGL2: uploaded once a frame, then turned by the graphics card. */
import type { Swept } from "../data/points";
import { GlProgram } from "../map/gl";
import type { Colour } from "../map/raster";
import { NEAR, type Matrix } from "./view";

const SHADES = 5;
const VERTEX = `#version 300 es
in float x; in float y; in float z;
uniform vec4 across; uniform vec4 down; uniform vec4 ahead;
uniform vec2 pixels; uniform vec2 heights; uniform float size; uniform vec3 ramp[${SHADES}];
flat out vec3 ink;
void main() {
  vec4 place = vec4(x, y, z, 1);
  float depth = dot(ahead, place);
  vec2 at = vec2(dot(across, place), dot(down, place));
  gl_Position = vec4(2.0 * at.x / pixels.x - depth, depth - 2.0 * at.y / pixels.y, depth - ${2 * NEAR}, depth);
  gl_PointSize = size;
  float share = clamp((z - heights.x) / (heights.y - heights.x), 0.0, 1.0) * ${SHADES - 1}.0;
  int low = min(int(share), ${SHADES - 2});
  ink = mix(ramp[low], ramp[low + 1], share - float(low));
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
flat in vec3 ink; out vec4 made;
void main() { made = vec4(ink, 1); }`;

export class GlSpace {
  #uploaded: Swept | null = null;

  private constructor(readonly program: GlProgram) {
    program.gl.enable(program.gl.DEPTH_TEST);
  }

  /** null where there is no WebGL2. */
  static on(canvas: HTMLCanvasElement): GlSpace | null {
    const program = GlProgram.on(canvas, VERTEX, FRAGMENT, true);
    return program && new GlSpace(program);
  }

  draw(
    m: Matrix,
    cloud: Swept | null,
    heights: readonly [number, number],
    ramp: readonly Colour[],
    size: number,
  ): void {
    const { program } = this;
    const { gl } = program;
    const { width, height } = gl.canvas;
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (!cloud) return;
    if (this.#uploaded !== cloud)
      for (const name of ["x", "y", "z"] as const) program.upload(name, cloud[name]);
    this.#uploaded = cloud;
    for (const [row, name] of ["across", "down", "ahead"].entries())
      gl.uniform4fv(program.place(name), m.slice(4 * row, 4 * row + 4));
    gl.uniform2f(program.place("pixels"), width, height);
    gl.uniform2f(program.place("heights"), ...(heights as [number, number]));
    gl.uniform1f(program.place("size"), size);
    gl.uniform3fv(
      program.place("ramp"),
      ramp.flatMap((one) => one.map((value) => value / 255)),
    );
    gl.drawArrays(gl.POINTS, 0, cloud.n);
  }
}
