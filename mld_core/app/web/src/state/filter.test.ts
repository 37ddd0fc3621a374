import { describe, expect, test } from "vitest";
import { holds, joined, literal, parts, searched, toggled } from "./filter";

describe("a filter is taken apart at and", () => {
  test.each([
    ["", []],
    ["gt = 1", ["gt = 1"]],
    ["gt = 1 and prediction = 9", ["gt = 1", "prediction = 9"]],
    ["(gt = 1) and (prediction = 9)", ["gt = 1", "prediction = 9"]],
    ["((gt = 1 and a = 2)) and b = 3", ["gt = 1", "a = 2", "b = 3"]],
    [
      "confidence between 0 and 0.05 AND is_error = true",
      ["confidence between 0 and 0.05", "is_error = true"],
    ],
    ["weather = 'rain and fog' and a = 1", ["weather = 'rain and fog'", "a = 1"]],
    ["weather = 'it\\'s and' and a = 1", ["weather = 'it\\'s and'", "a = 1"]],
    ["`my and column` = 1 and a = 1", ["`my and column` = 1", "a = 1"]],
    ["a = 1 or b = 2", ["a = 1 or b = 2"]],
    ["(a = 1 or b = 2) and c = 3", ["(a = 1 or b = 2)", "c = 3"]],
    ["a in ('x', 'y and z') and not (b = 1)", ["a in ('x', 'y and z')", "not (b = 1)"]],
    ["(a = 1) or (b = 2)", ["(a = 1) or (b = 2)"]],
  ])("%s", (filter, expected) => {
    expect(parts(filter)).toEqual(expected);
    expect(parts(joined(parts(filter)))).toEqual(expected);
  });
});

test("a value is added, taken away, and gives way to another of its column", () => {
  expect(toggled("", "gt = 1")).toBe("gt = 1");
  expect(toggled("gt = 1", "gt = 1")).toBe("");
  expect(toggled("gt = 1", "gt = 2")).toBe("gt = 2");
  expect(toggled("gt = 1 and is_error = true", "gt = 2 and prediction = 4")).toBe(
    "is_error = true and gt = 2 and prediction = 4",
  );
  expect(toggled("diagnosis has 'C01'", "diagnosis has 'C02'")).toBe(
    "diagnosis has 'C01' and diagnosis has 'C02'",
  );
  expect(toggled("a = 1 or b = 2", "c = 3")).toBe("(a = 1 or b = 2) and c = 3");
  expect(toggled("loss > 1", "loss > 2")).toBe("loss > 2");
  expect(toggled("loss > 1", "loss < 2")).toBe("loss > 1 and loss < 2");
});

test("what is said already is known", () => {
  expect(holds("gt = 1 and prediction = 9", "(gt = 1) and (prediction = 9)")).toBe(true);
  expect(holds("gt = 1", "gt = 11")).toBe(false);
  expect(holds("gt = 1", "")).toBe(false);
});

test("a search is a filter or a piece of an id, and hostile text stays text", () => {
  expect(searched("error_proba > 0.9")).toBe("error_proba > 0.9");
  expect(searched("diagnosis has 'C01'")).toBe("diagnosis has 'C01'");
  expect(searched("17")).toBe("input_id contains '17'");
  expect(searched("it's \\ <b>")).toBe("input_id contains 'it\\'s \\\\ <b>'");
  expect(literal("' or true or '")).toBe("'\\' or true or \\''");
  expect(parts(searched("' and a = 1 and b = '"))).toHaveLength(1);
});
