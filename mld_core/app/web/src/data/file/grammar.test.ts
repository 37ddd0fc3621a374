import { describe, expect, test } from "vitest";
import { Column, type ColumnInfo } from "./columns";
import { Grammar } from "./grammar";

/** Columns of six rows: numbers 0, 0.5, ..., a null; texts; lists; booleans. */
const block = new ArrayBuffer(64);
new Float64Array(block, 0, 6).set([0, 0.5, 1, 1.5, 2, NaN]);
new Uint8Array(block, 48, 6).set([0, 1, 2, 1, 0, 2]);
new Uint8Array(block, 56, 6).set([0, 1, 255, 1, 0, 0]);
const at = (info: Partial<ColumnInfo> & { name: string }): Column =>
  new Column({ type: "f8", offset: 0, length: 6, ...info }, block);
const columns = new Map(
  [
    at({ name: "x" }),
    at({ name: "y" }),
    at({ name: "weather", type: "text", code: "u1", offset: 48, values: ["it's", "Fog and rain", null] }),
    at({ name: "diagnosis", type: "list", code: "u1", offset: 48, values: [["C01", "C20"], [], null] }),
    at({ name: "two words", type: "bool", offset: 56 }),
  ].map((one) => [one.info.name, one]),
);
const rows = (filter: string): number[] =>
  Array.from(Grammar.mask(filter, (name) => columns.get(name) ?? null, 6)).flatMap((one, row) =>
    one === 1 ? [row] : [],
  );

describe("a filter holds for the rows that SQL would give", () => {
  test.each([
    ["", [0, 1, 2, 3, 4, 5]],
    ["x = 1", [2]],
    ["x != 1", [0, 1, 3, 4]],
    ["x between 0.5 and 1.5 and not x = 1", [1, 3]],
    ["not (x > 1)", [0, 1, 2]],
    ["x not between 0.5 and 1.5", [0, 4]],
    ["inside(x, y, 0.2, 0, 1.2, 0, 1.2, 9, 0.2, 9)", [1, 2]],
    ["not inside(x, y, 0.2, 0, 1.2, 0, 1.2, 9, 0.2, 9) and x < 2", [0, 3]],
    ["x is null or x >= 2", [4, 5]],
    ["x is not null", [0, 1, 2, 3, 4]],
    ["x in (0, 2, 7)", [0, 4]],
    ["x not in (0, 2, 7)", [1, 2, 3]],
    ["weather = 'it\\'s'", [0, 4]],
    ["weather contains 'AND'", [1, 3]],
    ["weather not contains 'and'", [0, 4]],
    ["diagnosis has 'C20'", [0, 4]],
    ["diagnosis not has 'C20'", [1, 3]],
    ["`two words` = true", [1, 3]],
    ["not `two words` = true", [0, 4, 5]],
    ["x = 9 or x < 1 and weather contains 'fog'", [1]],
    ["(x = 0 or x = 0.5) AND (weather is not null)", [0, 1]],
  ])("%s", (filter, expected) => expect(rows(filter)).toEqual(expected));
});

describe("a filter that cannot be read says why", () => {
  test.each([
    ["x", "expected a comparison"],
    ["x = 'a'", "holds a number, not a text"],
    ["z = 1", "no column 'z'"],
    ["inside(x, y, 1, 2)", "3 or more corners"],
    ["inside(x, weather, 1, 2)", "expected a column of numbers"],
    ["x = 1 x", "expected 'and', 'or' or the end, found 'x' at character 7"],
    ["x = null", "expected a number"],
    ["diagnosis = 'C01'", "write diagnosis has"],
    ["x = 1; drop", "cannot read '; drop'"],
  ])("%s", (filter, why) => expect(() => rows(filter)).toThrow(why));
});
