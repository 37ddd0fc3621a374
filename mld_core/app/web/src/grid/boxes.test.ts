import { expect, test } from "vitest";
import { around, bounds, corners, heading } from "./boxes";

test("a box of a picture has its four corners", () => {
  expect(bounds([corners([1, 2, 5, 8])])).toEqual({ x: 1, y: 2, width: 4, height: 6 });
});

test("a 3D box seen from above: forward is up, left is left, and it turns against the clock", () => {
  const ahead = bounds([corners([10, 0, 0, 2, 4, 1.5, 0])])!;
  expect([ahead.x, ahead.y, ahead.width, ahead.height].map(Math.round)).toEqual([-1, -12, 2, 4]);
  const left = bounds([corners([0, 5, 0, 2, 4, 1.5, 0])])!;
  expect(Math.round(left.x)).toBe(-6);
  const turned = bounds([corners([10, 0, 0, 2, 4, 1.5, Math.PI / 2])])!;
  expect([turned.width, turned.height].map(Math.round)).toEqual([4, 2]);
  expect(heading([0, 0, 0, 2, 4, 1, Math.PI / 2])[1].map(Math.round)).toEqual([-2, -0]);
});

test("what is shown around an object keeps the shape asked for and the object in its middle", () => {
  const shown = around({ x: 10, y: 10, width: 4, height: 20 }, 0.5, 8, 2);
  expect(shown.width / shown.height).toBeCloseTo(2);
  expect(shown.x + shown.width / 2).toBeCloseTo(12);
  expect(shown.height).toBeGreaterThanOrEqual(40);
  expect(bounds([[]])).toBeNull();
});
