/** Columns of a pass as a one-file report carries them: numbers as they are, texts as numbers of a list. */

export interface ColumnInfo {
  name: string;
  /** `f4 f8 i4 u1`: numbers (null: NaN, the least int, 255), `bool` (u1), `text` and `list`: places in `values`. */
  type: "f4" | "f8" | "i4" | "bool" | "text" | "list" | "json";
  /** Bytes from the beginning of the block, and rows or, of `json`, bytes. */
  offset: number;
  length: number;
  /** Of `text` and `list`: the block's column of this name holds the values. */
  code?: "u1" | "u2" | "i4";
  values?: unknown[];
}

type Numbers = Float32Array | Float64Array | Int32Array | Uint8Array | Uint16Array;
const LEAST = -2147483648;

export class Column {
  readonly #read: (row: number) => unknown;
  /** The numbers behind it: values, or places in `values`. */
  readonly numbers: Numbers | null;
  readonly values: unknown[] | null;

  constructor(
    readonly info: ColumnInfo,
    block: ArrayBuffer,
  ) {
    this.values = info.type === "json" ? readJson(block, info) : (info.values ?? null);
    this.numbers = info.type === "json" ? null : numbersOf(block, info);
    this.#read = reader(info, this.numbers, this.values);
  }

  get kind(): "number" | "boolean" | "text" | "list" {
    const { type } = this.info;
    if (type === "bool" || type === "list") return type === "bool" ? "boolean" : "list";
    return type === "text" || type === "json" ? "text" : "number";
  }

  /** The value of a row; null where there is none. */
  at(row: number): unknown {
    return this.#read(row);
  }
}

function readJson(block: ArrayBuffer, info: ColumnInfo): unknown[] {
  return JSON.parse(new TextDecoder().decode(new Uint8Array(block, info.offset, info.length))) as unknown[];
}

function numbersOf(block: ArrayBuffer, info: ColumnInfo): Numbers {
  const type = info.code ?? (info.type === "bool" ? "u1" : info.type);
  if (type === "f4") return new Float32Array(block, info.offset, info.length);
  if (type === "f8") return new Float64Array(block, info.offset, info.length);
  if (type === "i4") return new Int32Array(block, info.offset, info.length);
  return type === "u2"
    ? new Uint16Array(block, info.offset, info.length)
    : new Uint8Array(block, info.offset, info.length);
}

function reader(
  info: ColumnInfo,
  numbers: Numbers | null,
  values: unknown[] | null,
): (row: number) => unknown {
  if (numbers === null) return (row) => values![row] ?? null;
  if (values !== null) return (row) => values[numbers[row]!] ?? null;
  if (info.type === "bool") return (row) => (numbers[row] === 255 ? null : numbers[row] === 1);
  if (info.type === "i4") return (row) => (numbers[row] === LEAST ? null : numbers[row]!);
  return (row) => (Number.isNaN(numbers[row]) ? null : numbers[row]!);
}

/** The bytes of a block: base64 of gzip. */
export async function unpacked(text: string): Promise<ArrayBuffer> {
  const signs = atob(text);
  const bytes = new Uint8Array(signs.length);
  for (let at = 0; at < signs.length; at += 1) bytes[at] = signs.charCodeAt(at);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).arrayBuffer();
}
