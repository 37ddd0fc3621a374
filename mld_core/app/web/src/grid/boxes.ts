/** Boxes as shapes: 2D ones in pixels of the picture, 3D ones from above in metres. */

export type Point = readonly [number, number];

export interface Bounds {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Corners of `[x1, y1, x2, y2]`, or of `[x, y, z, w, l, h, yaw]` seen from above: forward is up, left is left. */
export function corners(box: number[]): Point[] {
  if (box.length < 7) {
    const [x1, y1, x2, y2] = box as [number, number, number, number];
    return [
      [x1, y1],
      [x2, y1],
      [x2, y2],
      [x1, y2],
    ];
  }
  const [x, y, , w, l, , yaw] = box as [number, number, number, number, number, number, number];
  const [cos, sin] = [Math.cos(yaw), Math.sin(yaw)];
  const ends: Point[] = [
    [l / 2, w / 2],
    [l / 2, -w / 2],
    [-l / 2, -w / 2],
    [-l / 2, w / 2],
  ];
  return ends.map(([a, b]) => above(x + a * cos - b * sin, y + a * sin + b * cos));
}

/** A point of the ground as the page draws it. */
export const above = (x: number, y: number): Point => [-y, -x];

/** Where a 3D box is heading: from its middle to its front. */
export function heading(box: number[]): [Point, Point] {
  const [x = 0, y = 0, , , l = 0, , yaw = 0] = box;
  return [above(x, y), above(x + (l / 2) * Math.cos(yaw), y + (l / 2) * Math.sin(yaw))];
}

export function bounds(shapes: readonly Point[][]): Bounds | null {
  const points = shapes.flat().filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  if (points.length === 0) return null;
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, width: Math.max(...xs) - x, height: Math.max(...ys) - y };
}

/** What is shown around an object: so much more on each side, at least `least` across, in the shape asked for. */
export function around(inner: Bounds, more: number, least: number, shape: number): Bounds {
  const across = Math.max(
    inner.width * (1 + 2 * more),
    least,
    inner.height * (1 + 2 * more) * shape,
    least * shape,
  );
  const width = across;
  const height = across / shape;
  const [x, y] = [inner.x + inner.width / 2 - width / 2, inner.y + inner.height / 2 - height / 2];
  return { x, y, width, height };
}

export const middle = (shape: readonly Point[]): Point => [
  shape.reduce((sum, [x]) => sum + x, 0) / shape.length,
  shape.reduce((sum, [, y]) => sum + y, 0) / shape.length,
];

export const path = (shape: readonly Point[]): string =>
  `${shape.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("")}Z`;

export const viewBox = (one: Bounds): string => `${one.x} ${one.y} ${one.width} ${one.height}`;
