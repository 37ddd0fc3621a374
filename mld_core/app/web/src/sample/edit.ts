/** A box under the hand: moved, resized, turned. 2D boxes in pixels, 3D ones from above in metres. */
import { above, corners, middle, type Point } from "../grid/boxes";

export type Grip =
  "n" | "s" | "w" | "e" | "nw" | "ne" | "sw" | "se" | "front" | "back" | "left" | "right" | "turn";

/** So small may a box become by hand: a pixel, ten centimetres. */
const least = (box: readonly number[]): number => (box.length < 7 ? 1 : 0.1);
export const isSolid = (box: readonly number[]): boolean => box.length >= 7;

/** A point that is drawn, in the coordinates of the box. */
export const fromDrawn = (box: readonly number[], [x, y]: Point): Point => (isSolid(box) ? [-y, -x] : [x, y]);

export const rounded = (box: readonly number[]): number[] =>
  box.map((value) => Math.round(value * (isSolid(box) ? 1000 : 10)) / (isSolid(box) ? 1000 : 10));

export function moved(box: readonly number[], dx: number, dy: number): number[] {
  const made = [...box];
  made[0]! += dx;
  made[1]! += dy;
  if (!isSolid(box)) {
    made[2]! += dx;
    made[3]! += dy;
  }
  return made;
}

export const wrapped = (angle: number): number => {
  const turned = (angle + Math.PI) % (2 * Math.PI);
  return (turned <= 0 ? turned + 2 * Math.PI : turned) - Math.PI;
};
/** The same box, heading the other way. */
export const flipped = (box: readonly number[]): number[] => [...box.slice(0, 6), wrapped(box[6]! + Math.PI)];

/** The box with one of its grips at a place; what lies opposite stays. */
export function gripped(box: readonly number[], grip: Grip, [x, y]: Point): number[] {
  if (!isSolid(box)) {
    const made = [...box];
    if (grip.includes("w")) made[0] = Math.min(x, made[2]! - least(box));
    if (grip.includes("e")) made[2] = Math.max(x, made[0]! + least(box));
    if (grip.includes("n")) made[1] = Math.min(y, made[3]! - least(box));
    if (grip.includes("s")) made[3] = Math.max(y, made[1]! + least(box));
    return made;
  }
  const [cx, cy, cz, w, l, h, yaw] = box as [number, number, number, number, number, number, number];
  if (grip === "turn") return [cx, cy, cz, w, l, h, Math.atan2(y - cy, x - cx)];
  const [cos, sin] = [Math.cos(yaw), Math.sin(yaw)];
  const along = (x - cx) * cos + (y - cy) * sin;
  const across = (y - cy) * cos - (x - cx) * sin;
  const lengthwise = grip === "front" || grip === "back";
  const sign = grip === "front" || grip === "left" ? 1 : -1;
  const old = lengthwise ? l : w;
  const size = Math.max(least(box), sign * (lengthwise ? along : across) + old / 2);
  const shift = (sign * (size - old)) / 2;
  const [right, up] = lengthwise ? [shift * cos, shift * sin] : [-shift * sin, shift * cos];
  return [cx + right, cy + up, cz, lengthwise ? w : size, lengthwise ? size : l, h, yaw];
}

/** Where the grips are drawn; the one that turns lies so far ahead of the front. */
export function grips(box: readonly number[], ahead: number): { grip: Grip; at: Point }[] {
  const ends = corners([...box]);
  const half = (a: number, b: number): Point => middle([ends[a]!, ends[b]!]);
  if (!isSolid(box)) {
    const [nw, ne, se, sw] = ends as [Point, Point, Point, Point];
    const sides = { n: half(0, 1), e: half(1, 2), s: half(2, 3), w: half(3, 0) };
    return Object.entries({ nw, ne, se, sw, ...sides }).map(([grip, at]) => ({ grip: grip as Grip, at }));
  }
  const [x, y, , , l, , yaw] = box as [number, number, number, number, number, number, number];
  const front = l / 2 + ahead;
  const turn = above(x + front * Math.cos(yaw), y + front * Math.sin(yaw));
  const sides = { front: half(0, 1), right: half(1, 2), back: half(2, 3), left: half(3, 0) };
  return Object.entries({ ...sides, turn }).map(([grip, at]) => ({ grip: grip as Grip, at }));
}

/** The numbers of a box by name, as they are typed; angles in degrees. */
export const FIELDS = {
  flat: ["left", "top", "right", "bottom"],
  solid: ["x ahead", "y left", "z up", "width", "length", "height", "heading °"],
};
