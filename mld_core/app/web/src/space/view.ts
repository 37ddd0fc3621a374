/** What is seen from where: one matrix leads from metres to pixels, of the 3D view, the view from above and the camera. */
import type { Bounds } from "../grid/boxes";

/** Three rows of four: pixel across times depth, pixel down times depth, depth. Depth is 1 in a view from above. */
export type Matrix = readonly number[];
export type Place = readonly [number, number, number];

/** Where one looks from: around a place, that far away, turned to the left from ahead, bent down. */
export interface Orbit {
  at: Place;
  far: number;
  turn: number;
  down: number;
}
/** Metres before the eye within which nothing is drawn. */
export const NEAR = 0.1;

export function orbitMatrix({ at, far, turn, down }: Orbit, width: number, height: number): Matrix {
  const [c, s, cd, sd] = [Math.cos(turn), Math.sin(turn), Math.cos(down), Math.sin(down)];
  const ahead = [cd * c, cd * s, -sd];
  const right = [s, -c, 0];
  const up = [sd * c, sd * s, cd];
  const focal = 0.9 * Math.min(width, 1.6 * height);
  const row = (of: number[]): number[] => {
    const shift = of.reduce((sum, one, k) => sum + one * (at[k]! - far * ahead[k]!), 0);
    return [...of, -shift];
  };
  const [x, y, depth] = [row(right), row(up), row(ahead)];
  return [
    ...depth.map((one, k) => (width / 2) * one + focal * x[k]!),
    ...depth.map((one, k) => (height / 2) * one - focal * y[k]!),
    ...depth,
  ];
}

/** From above, as an SVG with this view box shows it: fitted into the element, in its middle. */
export function aboveMatrix(view: Bounds, width: number, height: number): Matrix {
  const scale = Math.min(width / view.width, height / view.height);
  const [x, y] = [(width - scale * view.width) / 2, (height - scale * view.height) / 2];
  return [0, -scale, 0, x - scale * view.x, -scale, 0, 0, y - scale * view.y, 0, 0, 0, 1];
}

const seen = (m: Matrix, [x, y, z]: Place): [number, number, number] => [
  m[0]! * x + m[1]! * y + m[2]! * z + m[3]!,
  m[4]! * x + m[5]! * y + m[6]! * z + m[7]!,
  m[8]! * x + m[9]! * y + m[10]! * z + m[11]!,
];

/** The pixel of a place; null behind the eye. */
export function pixelAt(m: Matrix, place: Place): [number, number] | null {
  const [x, y, depth] = seen(m, place);
  return depth < NEAR ? null : [x / depth, y / depth];
}

/** Lines as a path; of one that goes past the eye the part before it. */
export function lines(m: Matrix, ends: readonly (readonly [Place, Place])[]): string {
  let made = "";
  for (const [from, to] of ends) {
    let [a, b] = [seen(m, from), seen(m, to)];
    if (a[2] < NEAR && b[2] < NEAR) continue;
    if (a[2] < NEAR || b[2] < NEAR) {
      const share = (NEAR - a[2]) / (b[2] - a[2]);
      const cut = a.map((one, k) => one + share * (b[k]! - one)) as [number, number, number];
      if (a[2] < NEAR) a = cut;
      else b = cut;
    }
    const [x, y] = [a[0] / a[2], a[1] / a[2]];
    made += `M${x.toFixed(1)} ${y.toFixed(1)}L${(b[0] / b[2]).toFixed(1)} ${(b[1] / b[2]).toFixed(1)}`;
  }
  return made;
}

/** Corners of `[x, y, z, w, l, h, yaw]`: the floor from the front left clockwise, then the roof. */
export function corners3(box: readonly number[]): Place[] {
  const [x, y, z, w, l, h, yaw] = box as [number, number, number, number, number, number, number];
  const [c, s] = [Math.cos(yaw), Math.sin(yaw)];
  return [-h / 2, h / 2].flatMap((up) =>
    (
      [
        [l, w],
        [l, -w],
        [-l, -w],
        [-l, w],
      ] as const
    ).map(([a, b]): Place => [x + (a * c - b * s) / 2, y + (a * s + b * c) / 2, z + up]),
  );
}

/** The edges of a box, and an arrow on its floor from the middle through the front. */
export function edges(box: readonly number[]): [Place, Place][] {
  const ends = corners3(box);
  const [x, y, z, , l, h, yaw] = box as [number, number, number, number, number, number, number];
  const at = (ahead: number, aside: number): Place => [
    x + ahead * Math.cos(yaw) - aside * Math.sin(yaw),
    y + ahead * Math.sin(yaw) + aside * Math.cos(yaw),
    z - h / 2,
  ];
  const [tip, wing] = [0.5 * l + 0.6, 0.5 * l + 0.1];
  return [
    ...[0, 1, 2, 3].flatMap((k): [Place, Place][] => [
      [ends[k]!, ends[(k + 1) % 4]!],
      [ends[4 + k]!, ends[4 + ((k + 1) % 4)]!],
      [ends[k]!, ends[4 + k]!],
    ]),
    [at(0, 0), at(tip, 0)],
    [at(tip, 0), at(wing, 0.3)],
    [at(tip, 0), at(wing, -0.3)],
  ];
}

/** The outline of what a box covers, to be pointed at: the hull of its corners. */
export function outline(m: Matrix, box: readonly number[]): string {
  const points = corners3(box).map((one) => pixelAt(m, one));
  if (points.some((one) => one === null)) return "";
  const all = (points as [number, number][]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const half = (ordered: [number, number][]): [number, number][] => {
    const made: [number, number][] = [];
    for (const p of ordered) {
      while (made.length > 1) {
        const [a, b] = [made.at(-2)!, made.at(-1)!];
        if ((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0) break;
        made.pop();
      }
      made.push(p);
    }
    return made.slice(0, -1);
  };
  const hull = [...half(all), ...half([...all].reverse())];
  return `M${hull.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}Z`;
}

/** The view that has a stretch of ground in sight, from behind and above. */
export const overview = (ground: Bounds): Orbit => ({
  at: [-(ground.y + 0.58 * ground.height), -(ground.x + ground.width / 2), -1],
  far: Math.max(8, 0.85 * Math.max(ground.width, ground.height)),
  turn: 0,
  down: 0.55,
});

/** The same view, its middle moved by so many pixels on the ground. */
export function moved(one: Orbit, right: number, down: number, width: number): Orbit {
  const step = one.far / Math.max(width, 1);
  const [c, s] = [Math.cos(one.turn), Math.sin(one.turn)];
  const [ahead, aside] = [down * step * 1.4, -right * step];
  const [x, y, z] = one.at;
  return { ...one, at: [x + ahead * c + aside * s, y + ahead * s - aside * c, z] };
}
export const turned = (one: Orbit, left: number, up: number): Orbit => ({
  ...one,
  turn: one.turn + left,
  down: Math.min(1.57, Math.max(-0.2, one.down + up)),
});
export const zoomed = (one: Orbit, closer: number): Orbit => ({
  ...one,
  far: Math.min(400, Math.max(2, one.far / closer)),
});

/** Colours of heights, from low to high. */
export const RAMP = [0, 1, 2, 3, 4].map((at) => `var(--height-${at})`);
