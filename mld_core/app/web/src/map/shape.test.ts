import { expect, test } from "vitest";
import { parts, toggled } from "../state/filter";
import { shapesOf, simplified, within, written, type Point } from "./shape";

const AXES = ["pca_1", "pca_2"] as const;
const circle = (n: number): Point[] =>
  Array.from({ length: n }, (_, at) => [Math.cos((2 * Math.PI * at) / n), Math.sin((2 * Math.PI * at) / n)]);

test("a lasso of many points becomes one of few with the same inside", () => {
  const few = simplified(circle(500), 1e-4);
  expect(few.length).toBeLessThanOrEqual(24);
  const holds = within(few);
  for (const at of [0.1, 0.5, 0.93]) {
    expect(holds(at, 0)).toBe(true);
    expect(holds(0, -at)).toBe(true);
  }
  expect(holds(1.05, 0)).toBe(false);
  expect(holds(NaN, 0)).toBe(false);
});

test("looking at the edges of a height alone says what looking at all of them does", () => {
  const star = Array.from({ length: 23 }, (_, at): Point => {
    const far = at % 2 ? 1 : 0.3;
    return [far * Math.cos((2 * Math.PI * at) / 23), far * Math.sin((2 * Math.PI * at) / 23)];
  });
  const holds = within(star);
  const all = (x: number, y: number): boolean =>
    star.reduce((odd, [x1, y1], at) => {
      const [x2, y2] = star[(at + 1) % star.length]!;
      const crosses = y >= Math.min(y1, y2) && y < Math.max(y1, y2);
      return crosses && x < x1 + (y - y1) * ((x2 - x1) / (y2 - y1)) ? !odd : odd;
    }, false);
  const ends = star.map(([, y]) => y);
  for (const y of [...ends, ...Array.from({ length: 400 }, (_, at) => (at - 200) / 190)])
    for (let x = -1.1; x < 1.1; x += 0.037) expect(holds(x, y)).toBe(all(x, y));
});

test("a shape that goes around a hole does not hold the hole", () => {
  const horseshoe: Point[] = [
    ...([
      [0, 0],
      [3, 0],
      [3, 3],
      [2, 3],
    ] as const),
    ...([
      [2, 1],
      [1, 1],
      [1, 3],
      [0, 3],
    ] as const),
  ];
  expect(within(horseshoe)(0.5, 2)).toBe(true);
  expect(within(horseshoe)(1.5, 2)).toBe(false);
});

test("it is written as a part of a filter, read again, and another one takes its place", () => {
  const term = written(
    [
      [0.12345, 1],
      [2, 3.00009],
      [-4, 5],
    ],
    AXES,
    0.01,
  );
  expect(term).toBe("inside(pca_1,pca_2,0.12,1,2,3,-4,5)");
  const filter = toggled("gt = 3", term);
  expect(parts(filter)).toEqual(["gt = 3", term]);
  expect(shapesOf(parts(filter), AXES)).toEqual([
    [
      [0.12, 1],
      [2, 3],
      [-4, 5],
    ],
  ]);
  const other = written(
    [
      [0, 0],
      [1, 0],
      [0, 1],
    ],
    AXES,
    1,
  );
  expect(parts(toggled(filter, other))).toEqual(["gt = 3", other]);
});
