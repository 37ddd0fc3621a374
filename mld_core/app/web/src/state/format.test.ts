import { expect, test } from "vitest";
import { count } from "./format";

test("counts are read in groups of three", () => {
  expect(count(1234567)).toBe("1,234,567");
});
