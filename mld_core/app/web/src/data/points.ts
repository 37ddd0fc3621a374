/** Whole columns of a pass, as they lie in memory: numbers, or places in a list of values. */

export type Numbers = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array;
export interface Held {
  numbers: Numbers;
  /** What the numbers stand for, where they are places. */
  values: unknown[] | null;
}
export interface Columns {
  rows: number;
  of?: number | undefined;
  reach?: number | undefined;
  get(name: string): Held | undefined;
}

/** Points of a frame as they lie in memory, metres. */
export interface Swept {
  n: number;
  /** Points of the sensor, of which these are some. */
  of: number;
  /** Metres from the sensor up to which they are shown; null = all. */
  reach: number | null;
  x: Float32Array;
  y: Float32Array;
  z: Float32Array;
}

interface Head {
  rows: number;
  of?: number;
  reach?: number;
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
  return { rows: head.rows, of: head.of, reach: head.reach, get: (name) => made.get(name) };
}

/** The points of a frame, in the memory that the answer lies in. */
export function unpackedCloud(bytes: ArrayBuffer): Swept {
  const { rows: n, of = n, reach = null, get } = unpackedColumns(bytes);
  const of_ = (name: string): Float32Array => get(name)!.numbers as Float32Array;
  return { n, of, reach, x: of_("x"), y: of_("y"), z: of_("z") };
}

/** Points of a file: x, y, z as int16 centimetres in base64. */
export function cloudOfText({ n, of, xyz }: { n: number; of: number; xyz: string }): Swept {
  const bytes = Uint8Array.from(atob(xyz), (sign) => sign.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const [x, y, z] = [0, 1, 2].map((k) =>
    Float32Array.from({ length: n }, (_, at) => view.getInt16(6 * at + 2 * k, true) / 100),
  ) as [Float32Array, Float32Array, Float32Array];
  return { n, of, reach: null, x, y, z };
}
