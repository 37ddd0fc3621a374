import { expect, test } from "vitest";
import { axis, runsOf, smoothed, ticks, written } from "./scale";

test("ticks are round and between the ends", () => {
  expect(ticks(0.13, 0.97, 5)).toEqual([0.2, 0.4, 0.6, 0.8]);
  expect(ticks(0, 1, 2)).toEqual([0, 0.5, 1]);
  expect(ticks(0, 5, 8, true)).toEqual([0, 1, 2, 3, 4, 5]);
});

test("an axis reaches from end to end", () => {
  const line = axis([2, 4, 3], 100, 0);
  expect([line.at(2), line.at(3), line.at(4)]).toEqual([100, 50, 0]);
  expect(axis([], 0, 1).ticks.length).toBeGreaterThan(1);
  expect(axis([7], 0, 10).at(7)).toBe(5);
});

test("a logarithmic axis is one only where it can be", () => {
  const line = axis([0.01, 1], 0, 100, true);
  expect(line.log).toBe(true);
  expect(line.at(0.1)).toBeCloseTo(50);
  expect(line.ticks).toEqual([0.01, 0.1, 1]);
  expect(axis([0, 1], 0, 100, true).log).toBe(false);
});

test("no smoothing changes nothing, and smoothing starts at the first value", () => {
  expect(smoothed([1, 3, 2], 0)).toEqual([1, 3, 2]);
  const made = smoothed([1, 3], 0.5);
  expect(made[0]).toBe(1);
  expect(made[1]).toBeCloseTo(7 / 3);
});

test("names of runs survive an address", () => {
  const runs = [
    { model: "a,b/c", version: "v 1%" },
    { model: "net", version: "v2" },
  ];
  expect(runsOf(written(runs))).toEqual(runs);
  expect(written(runs.slice(1))).toBe("net/v2");
  expect(runsOf("")).toEqual([]);
  expect(runsOf("net/v2,net/v2")).toEqual(runs.slice(1));
});
