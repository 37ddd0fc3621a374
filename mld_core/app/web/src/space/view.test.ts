import { describe, expect, it } from "vitest";
import { Clouds, heights, KEPT } from "./clouds";
import { GlSpace } from "./gl";
import {
  aboveMatrix,
  corners3,
  edges,
  lines,
  moved,
  orbitMatrix,
  outline,
  overview,
  pixelAt,
  turned,
  zoomed,
} from "./view";

const car = [10, 2, 0, 2, 4, 1.5, 0];
const orbit = { at: [0, 0, 0] as const, far: 10, turn: 0, down: 0 };

describe("what is seen from where", () => {
  it("looks ahead: left is left, up is up, and what it looks at is in the middle", () => {
    const m = orbitMatrix(orbit, 400, 300);
    expect(pixelAt(m, [0, 0, 0])!.map(Math.round)).toEqual([200, 150]);
    expect(pixelAt(m, [0, 1, 0])![0]).toBeLessThan(200);
    expect(pixelAt(m, [0, 0, 1])![1]).toBeLessThan(150);
    expect(pixelAt(m, [-11, 0, 0])).toBeNull();
  });
  it("goes round the middle, which stays", () => {
    const one = turned(orbit, Math.PI / 2, 0.5);
    const m = orbitMatrix(one, 400, 300);
    expect(pixelAt(m, [0, 0, 0])!.map(Math.round)).toEqual([200, 150]);
    expect(pixelAt(m, [-1, 0, 0])![0]).toBeLessThan(200); // looking to the left, behind is left
    expect(zoomed(orbit, 2).far).toBe(5);
    expect(zoomed(orbit, 1e9).far).toBe(2);
  });
  it("is moved as the hand moves", () => {
    const m = orbitMatrix(moved(orbit, 40, 0, 400), 400, 300);
    expect(pixelAt(m, [0, 0, 0])![0]).toBeGreaterThan(200);
  });
  it("from above is what the drawing's view box shows", () => {
    const m = aboveMatrix({ x: -20, y: -40, width: 40, height: 40 }, 800, 400);
    expect(pixelAt(m, [40, 20, 5])).toEqual([200, 0]);
    expect(pixelAt(m, [0, -20, -5])).toEqual([600, 400]);
  });
  it("has all of the ground in sight", () => {
    const m = orbitMatrix(overview({ x: -30, y: -60, width: 60, height: 60 }), 500, 400);
    for (const place of [
      [0, 0, 0],
      [60, 25, 0],
      [60, -25, 0],
    ] as const) {
      const [x, y] = pixelAt(m, place)!;
      expect(x > -60 && x < 560 && y > 0 && y < 460).toBe(true);
    }
  });
});

describe("boxes", () => {
  it("have eight corners, twelve edges and an arrow to the front", () => {
    expect(corners3(car)[0]).toEqual([12, 3, -0.75]);
    expect(edges(car)).toHaveLength(15);
    expect(edges(car).at(-3)![1][0]).toBeGreaterThan(12);
  });
  it("that go past the eye are cut, those behind it are not drawn", () => {
    const m = orbitMatrix({ ...orbit, far: 0.001 }, 400, 300);
    expect(
      lines(m, [
        [
          [-5, 0, 0],
          [-4, 0, 0],
        ],
      ]),
    ).toBe("");
    const cut = lines(m, [
      [
        [-5, 1, 0],
        [5, 1, 0],
      ],
    ]);
    expect(cut).toMatch(/^M[-\d.]+ 150\.0L[-\d.]+ 150\.0$/);
    expect(outline(m, [0, 0, 0, 2, 4, 1.5, 0])).toBe("");
    expect(outline(m, car)).toMatch(/^M.*Z$/);
  });
});

describe("points in memory", () => {
  it("are asked for once, few are kept, and what failed is asked for again", async () => {
    const asked: string[] = [];
    const clouds = new Clouds(({ id }) => {
      asked.push(id);
      return id === "bad" ? Promise.reject(new Error("no")) : Promise.resolve(null);
    });
    await Promise.all(["a", "b", "a"].map((id) => clouds.of({ id })));
    expect(asked).toEqual(["a", "b"]);
    for (let n = 0; n < 20; n += 1) await clouds.of({ id: `${n}` });
    expect(clouds.size).toBe(KEPT);
    await expect(clouds.of({ id: "bad" })).rejects.toThrow("no");
    await expect(clouds.of({ id: "bad" })).rejects.toThrow("no");
    expect(asked.filter((id) => id === "bad")).toHaveLength(2);
  });
  it("are no longer waited for once their frame is far behind, or the view is closed", async () => {
    const signals = new Map<string, AbortSignal>();
    const clouds = new Clouds(({ id }, signal) => {
      signals.set(id, signal);
      return new Promise((_, no) => signal.addEventListener("abort", () => no(new Error("gone"))));
    });
    const first = clouds.of({ id: "0" });
    for (let n = 1; n <= KEPT; n += 1) clouds.of({ id: `${n}` }).catch(() => undefined);
    await expect(first).rejects.toThrow("gone");
    expect([...signals.values()].filter((one) => one.aborted)).toHaveLength(1);
    clouds.close();
    expect([...signals.values()].every((one) => one.aborted)).toBe(true);
  });
  it("have colours between the heights that nearly all lie in", () => {
    const z = Float32Array.from({ length: 5000 }, (_, at) => (at === 7 ? 500 : -2 + (at % 100) / 50));
    expect(heights(z)).toEqual([-2, 0]);
    expect(heights(new Float32Array())).toEqual([0, 1]);
  });
});

describe("the graphics card", () => {
  const fakeCanvas = (
    renderer: string,
  ): { canvas: HTMLCanvasElement; told: { made: number; lost: number } } => {
    const told = { made: 0, lost: 0 };
    const extensions: Record<string, object> = {
      WEBGL_lose_context: { loseContext: () => (told.lost += 1) },
      WEBGL_debug_renderer_info: {},
    };
    const known: Record<string, unknown> = {
      getExtension: (name: string) => extensions[name] ?? null,
      getParameter: () => renderer,
      getProgramParameter: () => true,
    };
    const gl = new Proxy(known, { get: (of, name) => of[String(name)] ?? (() => ({})) });
    const getContext = (): unknown => ((told.made += 1), gl);
    return { canvas: { getContext } as unknown as HTMLCanvasElement, told };
  };
  it("is given back what a view that is closed held", () => {
    const { canvas, told } = fakeCanvas("NVIDIA");
    GlSpace.on(canvas)!.program.close();
    expect(told).toEqual({ made: 1, lost: 1 });
  });
  it("is asked once where the processor draws for it", () => {
    const { canvas, told } = fakeCanvas("Google SwiftShader");
    expect([GlSpace.on(canvas), GlSpace.on(canvas), GlSpace.on(canvas)]).toEqual([null, null, null]);
    expect(told).toEqual({ made: 1, lost: 1 });
  });
});
