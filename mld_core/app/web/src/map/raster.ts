/** Points on a 2D canvas: each as a dot, or, where they are very many, how dense they lie. */
import { BEHIND, DIM, RIGHT, WRONG, type Cloud, type View } from "./cloud";

export type Colour = readonly [number, number, number];
export interface Look {
  /** Of the legend's entries, then grey. */
  colours: readonly Colour[];
  dim: Colour;
}

const CELL = 2;

/** Every point as a square of so many pixels; what is wrong lies on top. */
export function dots(image: ImageData, cloud: Cloud, view: View, size: number, look: Look): void {
  const { width, height } = image;
  const pixels = new Uint32Array(image.data.buffer);
  const inks = look.colours.map(([r, g, b]) => pixel(r, g, b, 255));
  const [faint, behind] = [pixel(...look.dim, 90), pixel(...look.dim, 170)];
  const half = Math.floor(size / 2);
  for (const pass of [BEHIND, DIM, RIGHT, WRONG])
    for (let row = 0; row < cloud.rows; row += 1) {
      if (cloud.state[row] !== pass) continue;
      const left = Math.round(width / 2 + (cloud.x[row]! - view.x) * view.scale) - half;
      const top = Math.round(height / 2 - (cloud.y[row]! - view.y) * view.scale) - half;
      if (!(left >= 0 && top >= 0 && left + size <= width && top + size <= height)) continue;
      const colour = pass === DIM ? faint : pass === BEHIND ? behind : inks[cloud.colour[row]!]!;
      for (let y = top; y < top + size; y += 1)
        pixels.fill(colour, y * width + left, y * width + left + size);
    }
}

/** In which cell of an image each point lies, -1 for what is out of sight: another selection moves none of them. */
export interface Cells {
  of: Int32Array;
  inSight: number;
  /** What it was made of. */
  from: readonly unknown[];
}

export function cellsOf(
  cloud: Cloud,
  view: View,
  width: number,
  height: number,
  before: Cells | null,
): Cells {
  const { x, y, rows } = cloud;
  const from = [x, y, view.x, view.y, view.scale, width, height];
  if (before && from.every((one, at) => one === before.from[at])) return before;
  const [columns, lines] = [Math.ceil(width / CELL), Math.ceil(height / CELL)];
  const [scale, left, top, x0, y0] = [view.scale / CELL, width / 2 / CELL, height / 2 / CELL, view.x, view.y];
  const of = before?.of.length === rows ? before.of : new Int32Array(rows);
  let inSight = 0;
  for (let row = 0; row < rows; row += 1) {
    const column = left + (x[row]! - x0) * scale;
    const line = top - (y[row]! - y0) * scale;
    const seen = column >= 0 && column < columns && line >= 0 && line < lines;
    of[row] = seen ? (line | 0) * columns + (column | 0) : -1;
    if (seen) inSight += 1;
  }
  return { of, inSight, from };
}

/** How many points lie where: the selected ones in their mean colour, the others as a shade beneath. */
export function density(image: ImageData, cloud: Cloud, cells: Cells, look: Look): void {
  const { width, height } = image;
  const [columns, lines] = [Math.ceil(width / CELL), Math.ceil(height / CELL)];
  const sums = new Float32Array(4 * columns * lines);
  const others = new Uint32Array(columns * lines);
  const { state, colour, rows } = cloud;
  const flat = Float32Array.from(look.colours.flat());
  for (let row = 0; row < rows; row += 1) {
    const cell = cells.of[row]!;
    if (cell < 0) continue;
    if (state[row] === DIM || state[row] === BEHIND) {
      others[cell]! += 1;
      continue;
    }
    const from = 3 * colour[row]!;
    const to = 4 * cell;
    sums[to]! += flat[from]!;
    sums[to + 1]! += flat[from + 1]!;
    sums[to + 2]! += flat[from + 2]!;
    sums[to + 3]! += 1;
  }
  let [most, mostOthers] = [1, 1];
  for (let cell = 0; cell < others.length; cell += 1) {
    most = Math.max(most, sums[4 * cell + 3]!);
    mostOthers = Math.max(mostOthers, others[cell]!);
  }
  const [bright, shade] = [1 / Math.log1p(most), 1 / Math.log1p(mostOthers)];
  const pixels = new Uint32Array(image.data.buffer);
  for (let cell = 0; cell < others.length; cell += 1) {
    const n = sums[4 * cell + 3]!;
    if (n === 0 && others[cell] === 0) continue;
    const made =
      n > 0
        ? pixel(
            sums[4 * cell]! / n,
            sums[4 * cell + 1]! / n,
            sums[4 * cell + 2]! / n,
            70 + 185 * bright * Math.log1p(n),
          )
        : pixel(...look.dim, 20 + 90 * shade * Math.log1p(others[cell]!));
    const [line, column] = [CELL * Math.floor(cell / columns), CELL * (cell % columns)];
    for (let down = line; down < Math.min(line + CELL, height); down += 1)
      pixels.fill(made, down * width + column, down * width + Math.min(column + CELL, width));
  }
}

/** A pixel, as the bytes of an image lie in memory of a little-endian machine. */
export const pixel = (r: number, g: number, b: number, alpha: number): number =>
  ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
