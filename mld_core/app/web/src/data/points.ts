/** Whole columns of a pass, as they lie in memory: numbers, or places in a list of values. */

export type Numbers = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array;
export interface Held {
  numbers: Numbers;
  /** What the numbers stand for, where they are places. */
  values: unknown[] | null;
}
export interface Columns {
  rows: number;
  get(name: string): Held | undefined;
}

interface Head {
  rows: number;
  columns: { name: string; type: "f4" | "i4" | "u1"; offset: number; values?: unknown[] }[];
}

/** Columns of the server's bytes: the length of a JSON header, the header, then each column. */
export function unpackedColumns(bytes: ArrayBuffer): Columns {
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length))) as Head;
  const made = new Map<string, Held>();
  for (const { name, type, offset, values } of head.columns) {
    const Kind = type === "f4" ? Float32Array : type === "i4" ? Int32Array : Uint8Array;
    made.set(name, { numbers: new Kind(bytes, 4 + length + offset, head.rows), values: values ?? null });
  }
  return { rows: head.rows, get: (name) => made.get(name) };
}
