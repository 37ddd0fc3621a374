/** Points on a 2D canvas, coloured by height: from above, and in 3D where there is no WebGL2. */
import type { Swept } from "../data/points";
import { pixel, type Colour } from "../map/raster";
import { NEAR, type Matrix } from "./view";

const SHADES = 64;

export class Dots {
  #image: ImageData | null = null;
  #pixels = new Uint32Array(0);

  /** Draw all points as squares of so many pixels; the memory of the picture is used again. */
  draw(
    canvas: HTMLCanvasElement,
    m: Matrix,
    cloud: Swept | null,
    [low, high]: readonly [number, number],
    ramp: readonly Colour[],
    size: number,
  ): void {
    const context = canvas.getContext("2d");
    const { width, height } = canvas;
    if (!context || !width || !height) return;
    if (this.#image?.width !== width || this.#image.height !== height) {
      this.#image = context.createImageData(width, height);
      this.#pixels = new Uint32Array(this.#image.data.buffer);
    } else this.#pixels.fill(0);
    const pixels = this.#pixels;
    const inks = Uint32Array.from({ length: SHADES }, (_, at) =>
      pixel(...shade(ramp, at / (SHADES - 1)), 255),
    );
    const [a, b, c, d, e, f, g, h, i, j, k, l] = m as [
      ...[number, number, number, number, number, number, number, number, number, number, number, number],
    ];
    const [scale, last, half] = [(SHADES - 1) / (high - low), SHADES - 1, (size - 1) / 2];
    for (let at = 0; at < (cloud?.n ?? 0); at += 1) {
      const [x, y, z] = [cloud!.x[at]!, cloud!.y[at]!, cloud!.z[at]!];
      const depth = i * x + j * y + k * z + l;
      if (depth < NEAR) continue;
      const left = Math.round((a * x + b * y + c * z + d) / depth - half);
      const top = Math.round((e * x + f * y + g * z + h) / depth - half);
      if (left < 0 || top < 0 || left + size > width || top + size > height) continue;
      const ink = inks[Math.min(last, Math.max(0, ((z - low) * scale) | 0))]!;
      for (let row = top; row < top + size; row += 1)
        for (let column = left; column < left + size; column += 1) pixels[row * width + column] = ink;
    }
    context.putImageData(this.#image, 0, 0);
  }
}

/** A colour of a ramp, at a share of its length. */
export function shade(ramp: readonly Colour[], share: number): Colour {
  const at = share * (ramp.length - 1);
  const [from, to] = [ramp[Math.floor(at)]!, ramp[Math.min(ramp.length - 1, Math.floor(at) + 1)]!];
  const part = at - Math.floor(at);
  return [0, 1, 2].map((k) => from[k]! + part * (to[k]! - from[k]!)) as unknown as Colour;
}
