import { expect, test } from "vitest";
import { corners } from "../grid/boxes";
import { flipped, fromDrawn, grips, gripped, moved, type Grip } from "./edit";

const close = (a: readonly number[], b: readonly number[]): void =>
  a.forEach((value, at) => expect(value).toBeCloseTo(b[at]!, 6));

test("a flat box is moved, and resized by a grip with what lies opposite in its place", () => {
  expect(moved([1, 2, 5, 8], 2, -1)).toEqual([3, 1, 7, 7]);
  expect(gripped([1, 2, 5, 8], "se", [9, 9])).toEqual([1, 2, 9, 9]);
  expect(gripped([1, 2, 5, 8], "w", [3, 99])).toEqual([3, 2, 5, 8]);
  expect(gripped([1, 2, 5, 8], "n", [0, 99])).toEqual([1, 7, 5, 8]);
});

const SOLID = [10, 3, 0.5, 2, 4, 1.5, 0.6];

test("a solid box that is pulled at a side keeps its other sides", () => {
  for (const grip of ["front", "back", "left", "right"] as const) {
    const at = grips(SOLID, 1).find((one) => one.grip === grip)!.at;
    close(gripped(SOLID, grip, fromDrawn(SOLID, at)), SOLID);
  }
  const longer = gripped(SOLID, "front", [10 + 5 * Math.cos(0.6), 3 + 5 * Math.sin(0.6)]);
  expect(longer[4]).toBeCloseTo(7, 6);
  const [before, after] = [corners(SOLID), corners(longer)];
  close(after[2]!, before[2]!);
  close(after[3]!, before[3]!);
});

test("it turns towards the grip ahead of it, and its heading is flipped and flipped back", () => {
  const turned = gripped(SOLID, "turn" as Grip, [10, 9]);
  expect(turned[6]).toBeCloseTo(Math.PI / 2, 6);
  expect(flipped(SOLID)[6]).toBeCloseTo(0.6 - Math.PI, 6);
  close(flipped(flipped(SOLID)), SOLID);
});
