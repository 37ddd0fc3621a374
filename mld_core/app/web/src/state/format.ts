/** Numbers and times as a person reads them. */

export const count = (n: number | null | undefined): string => (n == null ? "–" : n.toLocaleString("en-US"));

/** A share as percent: three figures are enough, and what is not none or all never reads so. */
export function percent(share: number | null | undefined): string {
  if (share == null || Number.isNaN(share)) return "–";
  const value = 100 * share;
  if (value !== 0 && Math.abs(value) < 0.1) return value > 0 ? "< 0.1 %" : "> −0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value.toFixed(Number.isInteger(Math.round(value * 10) / 10) || value >= 99.95 ? 0 : 1)} %`;
}

export function number(value: number | null | undefined): string {
  if (value == null || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return count(value);
  const size = Math.abs(value);
  if (size >= 1000) return count(Math.round(value));
  if (size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

/** A value of a metric in its unit: shares as percent. */
export const inUnit = (value: number | null | undefined, unit: string): string =>
  unit === "share" ? percent(value) : number(value);

export const any = (value: unknown): string => {
  if (value == null) return "–";
  if (typeof value === "number") return number(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
};

/** Date and minute where the reader is. */
export function when(iso: string | null | undefined): string {
  if (!iso) return "";
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return iso;
  const two = (n: number): string => String(n).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}`;
}

/** `42 s`, `3 min 05 s`. */
export const duration = (seconds: number): string => {
  const whole = Math.floor(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
};

/** `1 sample`, `2 samples`. */
export const many = (n: number, one: string, more = `${one}s`): string =>
  `${count(n)} ${n === 1 ? one : more}`;

/** `1.2 MB`. */
export const bytes = (n: number): string =>
  n < 1e6
    ? `${(n / 1e3).toFixed(n < 1e4 ? 1 : 0)} kB`
    : n < 1e9
      ? `${(n / 1e6).toFixed(1)} MB`
      : `${(n / 1e9).toFixed(1)} GB`;
