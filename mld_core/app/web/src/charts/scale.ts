/** What a chart is drawn with: axes with round ticks, smoothing, runs in an address. */

export interface Axis {
  at: (value: number) => number;
  ticks: number[];
  log: boolean;
}

const STEPS = [1, 2, 5, 10];

/** Round numbers between two ends, about as many as asked for. */
export function ticks(low: number, high: number, many: number, whole = false): number[] {
  const rough = (high - low) / Math.max(1, many);
  const size = 10 ** Math.floor(Math.log10(rough || 1));
  const step = Math.max(whole ? 1 : 0, size * (STEPS.find((one) => one * size >= rough) ?? 10));
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let at = first; at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
}

/** Powers of ten, and where they are few what lies between. */
function powers(low: number, high: number): number[] {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const one of [1, 2, 5]) found.push(Number(`${one}e${power}`));
  const there = found.filter((one) => one >= low * 0.999 && one <= high * 1.001);
  const tens = there.filter((one) => Number.isInteger(Math.log10(one)));
  return tens.length > 2 ? tens : there;
}

/** From values to pixels; logarithmic where that is asked for and all of them are above zero. */
export function axis(values: number[], from: number, to: number, log = false, whole = false): Axis {
  let low = Infinity;
  let high = -Infinity;
  for (const one of values) {
    if (one < low) low = one;
    if (one > high) high = one;
  }
  if (low > high) [low, high] = [0, 1];
  const logs = log && low > 0;
  if (low === high)
    [low, high] = logs
      ? [low / 2, high * 2]
      : whole
        ? [low, high + 1]
        : [low - 0.5 * Math.abs(low || 1), high + 0.5 * Math.abs(high || 1)];
  const of = logs ? Math.log10 : (value: number): number => value;
  const [start, span] = [of(low), of(high) - of(low)];
  return {
    at: (value) => from + ((to - from) * (of(value) - start)) / span,
    ticks: logs ? powers(low, high) : ticks(low, high, whole ? 8 : 5, whole),
    log: logs,
  };
}

/** Exponential mean without the pull towards its start; 0 leaves all as it was. */
export function smoothed(values: number[], weight: number): number[] {
  let sum = 0;
  let mass = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

export interface Named {
  model: string;
  version: string;
}

/** Runs as text, `model/version` with commas between. */
export const written = (runs: Named[]): string =>
  runs.map((one) => [one.model, one.version].map(encodeURIComponent).join("/")).join(",");

/** Each of them once. */
export const runsOf = (text: string): Named[] =>
  [...new Set(text.split(","))]
    .map((one) => one.split("/").map(decodeURIComponent))
    .filter((one) => one.length === 2)
    .map(([model, version]) => ({ model: model!, version: version! }));
