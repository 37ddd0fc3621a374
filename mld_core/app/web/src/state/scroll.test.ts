import { expect, test } from "vitest";
import { Scroller, TALLEST } from "./scroll";

test("a short list scrolls as it is", () => {
  const scroller = new Scroller(10_000, 500);
  expect(scroller.height).toBe(10_000);
  expect(scroller.moved(1234)).toBe(1234);
  expect(scroller.barFor(9_900)).toBe(9_500);
});

test("a list of a million rows reaches its first and last pixel, and small steps stay small", () => {
  const full = 36_000_000;
  const scroller = new Scroller(full, 600);
  expect(scroller.height).toBe(TALLEST);
  expect(scroller.moved(TALLEST)).toBe(full - 600);
  expect(scroller.moved(0)).toBe(0);
  expect(scroller.moved(120)).toBe(120);
  const jump = scroller.moved(TALLEST / 2);
  expect(jump / full).toBeCloseTo(0.5, 3);
  expect(scroller.moved(TALLEST / 2 - 100)).toBeCloseTo(jump - 100, 6);
});

test("every row can be brought in sight", () => {
  const scroller = new Scroller(36_000_000, 600);
  for (const top of [0, 17_999_820, 35_999_820, 180]) {
    const bar = scroller.barFor(scroller.showing(top, 180));
    expect(bar).toBeGreaterThanOrEqual(0);
    expect(bar).toBeLessThanOrEqual(TALLEST);
    expect(scroller.offset).toBeLessThanOrEqual(top);
    expect(scroller.offset + 600).toBeGreaterThanOrEqual(top + 180);
  }
});
