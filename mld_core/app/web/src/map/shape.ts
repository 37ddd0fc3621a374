/** A lasso: drawn with many points, kept as few, written as a part of a filter. */

export type Point = readonly [number, number];
const MOST = 24;
const SLABS = 64;

/** Whether points lie within, with the very sums of the filter grammar: by rays that cross an odd number of edges. */
export function within(shape: readonly Point[]): (x: number, y: number) => boolean {
  const edges = shape.flatMap(([x1, y1], at) => {
    const [x2, y2] = shape[(at + 1) % shape.length]!;
    return y1 === y2 ? [] : [[Math.min(y1, y2), Math.max(y1, y2), x1, y1, (x2 - x1) / (y2 - y1)] as const];
  });
  const [across, up] = [shape.map(([x]) => x), shape.map(([, y]) => y)];
  const left = Math.min(...across);
  const right = Math.max(...across);
  const low = Math.min(...up);
  const high = Math.max(...up);
  // Of a million points each looks at the few edges of its height alone.
  const step = (high - low) / SLABS || 1;
  const slabs = Array.from({ length: SLABS + 1 }, (_, at) => {
    const from = low + (at - 1) * step;
    return Float64Array.from(edges.filter((edge) => edge[1] >= from && edge[0] <= from + 3 * step).flat());
  });
  return (x, y) => {
    if (!(x >= left && x <= right && y >= low && y <= high)) return false;
    const flat = slabs[Math.floor((y - low) / step)]!;
    let odd = 0;
    for (let at = 0; at < flat.length; at += 5)
      if (y >= flat[at]! && y < flat[at + 1]! && x < flat[at + 2]! + (y - flat[at + 3]!) * flat[at + 4]!)
        odd ^= 1;
    return odd === 1;
  };
}

/** At most 24 corners of a drawn line: those that leave it farthest (Douglas and Peucker), within a growing bound. */
export function simplified(drawn: readonly Point[], bound: number): Point[] {
  let made = [...drawn];
  for (let at = bound; made.length > MOST; at *= 1.5) made = corners(drawn, at);
  return made;
}

function corners(line: readonly Point[], bound: number): Point[] {
  const [first, last] = [line[0]!, line.at(-1)!];
  let [farthest, most] = [0, bound];
  for (let at = 1; at < line.length - 1; at += 1) {
    const away = distance(line[at]!, first, last);
    if (away > most) [farthest, most] = [at, away];
  }
  if (farthest === 0) return line.length < 2 ? [...line] : [first, last];
  return [
    ...corners(line.slice(0, farthest + 1), bound).slice(0, -1),
    ...corners(line.slice(farthest), bound),
  ];
}

function distance([x, y]: Point, [x1, y1]: Point, [x2, y2]: Point): number {
  const length = Math.hypot(x2 - x1, y2 - y1);
  if (length === 0) return Math.hypot(x - x1, y - y1);
  return Math.abs((x2 - x1) * (y1 - y) - (x1 - x) * (y2 - y1)) / length;
}

/** The shape as a test of two columns, with as many digits as a pixel is worth. */
export function written(shape: readonly Point[], axes: readonly [string, string], pixel: number): string {
  const digits = Math.min(12, Math.max(0, Math.ceil(-Math.log10(pixel))));
  const said = shape.map(([x, y]) => `${+x.toFixed(digits)},${+y.toFixed(digits)}`);
  return `inside(${axes.join(",")},${said.join(",")})`;
}

/** The shapes that a filter's parts draw over two columns. */
export function shapesOf(parts: readonly string[], axes: readonly [string, string]): Point[][] {
  return parts.flatMap((part) => {
    const told = /^inside\(\s*(\w+)\s*,\s*(\w+)\s*,([^()]*)\)$/i.exec(part);
    if (!told || told[1] !== axes[0] || told[2] !== axes[1]) return [];
    const numbers = told[3]!.split(",").map(Number);
    return [numbers.flatMap((x, at): Point[] => (at % 2 ? [] : [[x, numbers[at + 1] ?? NaN]]))];
  });
}
