import { expect, test } from "vitest";
import { any, count, many, number, percent, when } from "./format";

test("numbers are read in groups of three", () => {
  expect(count(1234567)).toBe("1,234,567");
  expect(count(null)).toBe("–");
  expect(number(0.123456)).toBe("0.123");
  expect(number(12345.6)).toBe("12,346");
  expect(number(0.00001)).toBe("1.0e-5");
  expect(many(1, "sample")).toBe("1 sample");
  expect(many(1200, "sample")).toBe("1,200 samples");
});

test("a share that is not none or all never reads so", () => {
  expect(percent(0)).toBe("0 %");
  expect(percent(1)).toBe("100 %");
  expect(percent(0.0001)).toBe("< 0.1 %");
  expect(percent(0.9999)).toBe("> 99.9 %");
  expect(percent(0.1234)).toBe("12.3 %");
  expect(percent(0.5)).toBe("50 %");
  expect(percent(null)).toBe("–");
});

test("what is not a time is shown as it is", () => {
  expect(when("<b>")).toBe("<b>");
  expect(when("2026-11-28T21:00:00")).toBe("2026-11-28 21:00");
  expect(any({ a: 1 })).toBe('{"a":1}');
  expect(any(true)).toBe("yes");
});
