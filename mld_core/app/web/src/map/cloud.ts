/** The points of a map with their colours, and which part of them is in sight. */
import type { Columns, Held } from "../data/points";
import type { Facet } from "../data/types";

/** How a point is drawn: not selected, selected, selected and wrong, of another split. */
export const DIM = 0;
export const RIGHT = 1;
export const WRONG = 2;
export const BEHIND = 3;
/** Colours of a map; what has none of them is grey. */
export const GREY = 32;

export interface Cloud {
  rows: number;
  x: Float32Array;
  y: Float32Array;
  /** Place of each point's colour. */
  colour: Uint8Array;
  state: Uint8Array;
}

/** What is in sight: the middle in the map's own units, and how many pixels one of them is. */
export interface View {
  x: number;
  y: number;
  scale: number;
}

export const pixelOf = (
  view: View,
  width: number,
  height: number,
  x: number,
  y: number,
): [number, number] => [width / 2 + (x - view.x) * view.scale, height / 2 - (y - view.y) * view.scale];
export const placeOf = (
  view: View,
  width: number,
  height: number,
  x: number,
  y: number,
): [number, number] => [view.x + (x - width / 2) / view.scale, view.y - (y - height / 2) / view.scale];

/** The view that holds nearly all points: one that lies far out does not press the others together. */
export function fitted(x: Float32Array, y: Float32Array, width: number, height: number): View {
  const [left, right] = ends(x);
  const [low, high] = ends(y);
  const across = width / Math.max(right - left, 1e-9);
  const up = height / Math.max(high - low, 1e-9);
  return { x: (left + right) / 2, y: (low + high) / 2, scale: 0.9 * Math.min(across, up) };
}

function ends(values: Float32Array): [number, number] {
  const step = Math.max(1, Math.floor(values.length / 20_000));
  const picked = Float32Array.from(
    { length: Math.ceil(values.length / step) },
    (_, at) => values[at * step]!,
  );
  const some = picked.filter((value) => Number.isFinite(value)).sort();
  const at = (share: number): number => some[Math.round(share * (some.length - 1))] ?? 0;
  const [inner, outer] = [at(0.002), at(0.998)];
  const room = 0.15 * (outer - inner);
  return [Math.max(at(0), inner - room), Math.min(at(1), outer + room)];
}

/** The colour of every row: the place of its value, or its bin, in the legend. */
export function coloured(column: Held | undefined, legend: Facet | null, rows: number): Uint8Array {
  const made = new Uint8Array(rows).fill(GREY);
  if (!column || !legend) return made;
  const { numbers, values } = column;
  if (legend.kind === "histogram") {
    const { low, high, n } = legend;
    for (let row = 0; row < rows; row += 1) {
      const share = (numbers[row]! - low) / (high - low || 1);
      if (!Number.isNaN(share)) made[row] = Math.min(n.length - 1, Math.max(0, Math.floor(share * n.length)));
    }
    return made;
  }
  const places = new Map(legend.values.slice(0, GREY).map((one, place) => [one.value, place]));
  if (values) {
    const known = values.map((value) => places.get(value) ?? GREY);
    for (let row = 0; row < rows; row += 1) made[row] = known[numbers[row]!] ?? GREY;
  } else for (let row = 0; row < rows; row += 1) made[row] = places.get(numbers[row]!) ?? GREY;
  return made;
}

/** How every row is drawn. */
export function states(wrong: Held | undefined, chosen: Uint8Array | null, rows: number): Uint8Array {
  const made = new Uint8Array(rows);
  for (let row = 0; row < rows; row += 1)
    if (!chosen || chosen[row] === 1) made[row] = wrong?.numbers[row] === 1 ? WRONG : RIGHT;
  return made;
}

/** Points of each colour that are selected. */
export function counted(colour: Uint8Array, state: Uint8Array): Uint32Array {
  const made = new Uint32Array(GREY + 1);
  for (let row = 0; row < state.length; row += 1) if (state[row] !== DIM) made[colour[row]!]! += 1;
  return made;
}

/** 1 for each row of a mask (of all, without one) whose point is where it holds. */
export function taken(
  x: Float32Array,
  y: Float32Array,
  before: Uint8Array | null,
  holds: (x: number, y: number) => boolean,
): Uint8Array {
  const made = new Uint8Array(x.length);
  for (let row = 0; row < made.length; row += 1)
    if ((!before || before[row] === 1) && holds(x[row]!, y[row]!)) made[row] = 1;
  return made;
}

/** 1 for each row that is named. */
export function marked(named: Columns | undefined, rows: number): Uint8Array {
  const made = new Uint8Array(rows);
  for (const row of named?.get("row")?.numbers ?? []) made[row] = 1;
  return made;
}

/** The row nearest to a place, within so many pixels; those that are selected come first. */
export function nearest(cloud: Cloud, view: View, x: number, y: number, pixels: number): number | null {
  const most = (pixels / view.scale) ** 2;
  let [found, least] = [-1, Infinity];
  for (let row = 0; row < cloud.rows; row += 1) {
    const state = cloud.state[row];
    if (state === BEHIND) continue;
    let away = (cloud.x[row]! - x) ** 2 + (cloud.y[row]! - y) ** 2;
    if (!(away <= most)) continue;
    if (state === DIM) away += most;
    if (away < least) [found, least] = [row, away];
  }
  return found < 0 ? null : found;
}
