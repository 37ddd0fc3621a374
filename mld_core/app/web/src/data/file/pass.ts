/** One pass of a result in the page: its columns, filters and orders over them, its samples. */
import type * as t from "../types";
import { Problem } from "../source";
import { Column, unpacked, type ColumnInfo } from "./columns";
import { Grammar } from "./grammar";

/** What the file says of a pass. Epochs whose rows it does not hold have no `block`. */
export interface FilePass {
  split: string;
  epoch: number | null;
  rows: number;
  /** Id of the element that holds the columns. */
  block: string | null;
  columns: ColumnInfo[];
  /** Which column holds which part of a sample. */
  cards: Record<string, string | string[]>;
  /** What to do about an error code whose samples carry no action. */
  pair_action: string;
  evaluation: t.Evaluation;
  confusion: t.Confusion | null;
  heatmaps: t.Heatmap[];
  facets: t.Facets | null;
  "columns-info": t.ColumnsInfo | null;
  curves: t.Curves | null;
}

const WORST = "-severity,-error_proba,-loss";
const MOST_KEPT = 24;

export class Pass {
  readonly #columns = new Map<string, Column>();
  readonly #masks = new Map<string, Uint8Array>();
  readonly #orders = new Map<string, Int32Array>();
  #ready: Promise<void> | null = null;

  constructor(
    readonly told: FilePass,
    readonly aliases: Record<string, string>,
    readonly text: (id: string) => string,
  ) {}

  /** Waits until the columns are there; refuses where the file has none. */
  async ready(): Promise<this> {
    const { block } = this.told;
    if (block === null)
      throw new Problem(
        404,
        "Not in this file",
        "This file holds the samples of the last epoch of each split.",
        "The app has every epoch.",
        "mld ui",
      );
    this.#ready ??= unpacked(this.text(block)).then((bytes) => {
      for (const info of this.told.columns) this.#columns.set(info.name, new Column(info, bytes));
    });
    await this.#ready;
    return this;
  }

  get held(): boolean {
    return this.told.block !== null;
  }

  readonly column = (name: string): Column | null => {
    const bare = name.replaceAll("`", "");
    const found = this.#columns.get(this.aliases[bare] ?? bare);
    return found?.info.name.startsWith("card.") ? null : (found ?? null);
  };

  mask(filter: string): Uint8Array {
    return kept(this.#masks, filter, () => Grammar.mask(filter, this.column, this.told.rows));
  }

  /** How many rows of a mask a further filter holds for. */
  count(mask: Uint8Array, filter: string): number {
    const other = this.mask(filter);
    let n = 0;
    for (let row = 0; row < mask.length; row += 1) n += mask[row]! & other[row]!;
    return n;
  }

  /** Rows of a filter in an order: nulls last, then by row. */
  chosen(filter: string, sort: string): Int32Array {
    const order = sort === "" || sort === "worst" ? WORST : sort;
    return kept(this.#orders, `${order}\n${filter}`, () => {
      const mask = this.mask(filter);
      const rows: number[] = [];
      for (let row = 0; row < mask.length; row += 1) if (mask[row] === 1) rows.push(row);
      if (order === "row") return Int32Array.from(rows);
      const keys = order.split(",").flatMap((one) => this.#key(one.trim(), order === WORST));
      rows.sort((a, b) => {
        for (const { key, down } of keys) {
          const left = key[a]!;
          const right = key[b]!;
          if (Number.isNaN(left) || Number.isNaN(right)) {
            if (Number.isNaN(left) && Number.isNaN(right)) continue;
            return Number.isNaN(left) ? 1 : -1;
          }
          if (left !== right) return left < right === down ? 1 : -1;
        }
        return a - b;
      });
      return Int32Array.from(rows);
    });
  }

  #key(part: string, lenient: boolean): { key: Float64Array; down: boolean }[] {
    const down = part.startsWith("-");
    const column = this.column(down ? part.slice(1) : part);
    if (column === null || column.kind === "list") {
      if (lenient) return [];
      throw new Problem(400, "The order cannot be read", `sort '${part}': this file has no such column`);
    }
    const rank = new Map<unknown, number>();
    if (column.kind === "text")
      [...new Set(column.values)].sort().forEach((one, place) => rank.set(one, place));
    const key = new Float64Array(this.told.rows);
    for (let row = 0; row < key.length; row += 1) {
      const value = column.at(row);
      key[row] = value === null ? NaN : typeof value === "string" ? rank.get(value)! : Number(value);
    }
    return [{ key, down }];
  }

  sample(row: number, badge = ""): t.Sample {
    const made: Record<string, unknown> = { row, hash: null, badge: null };
    for (const [key, name] of Object.entries(this.told.cards))
      made[key] = typeof name === "string" ? this.#columns.get(name)!.at(row) : this.#box(name, row);
    const value = badge === "" ? null : (this.column(badge)?.at(row) ?? null);
    if (typeof value === "number") made.badge = { column: badge, value };
    return made as unknown as t.Sample;
  }

  /** A box whose numbers stand in a column each; null where one is missing. */
  #box(names: string[], row: number): number[] | null {
    const values = names.map((name) => this.#columns.get(name)!.at(row));
    return values.includes(null) ? null : values.map((one) => Math.round(Number(one) * 1000) / 1000);
  }

  rowOf(id: string): number {
    const column = this.column("input_id");
    for (let row = 0; row < this.told.rows; row += 1) if (column?.at(row) === id) return row;
    return -1;
  }

  /** What the file holds of a sample beyond its row; null of all but the worst. */
  detail(row: number): Partial<t.SamplePage> | null {
    const column = this.#columns.get("card.details");
    return column?.info.type === "json" ? ((column.values as unknown as [Details])[0][row] ?? null) : null;
  }
}

type Details = Record<number, Partial<t.SamplePage>>;

function kept<T>(store: Map<string, T>, key: string, make: () => T): T {
  const found = store.get(key) ?? make();
  store.delete(key);
  store.set(key, found);
  if (store.size > MOST_KEPT) store.delete(store.keys().next().value!);
  return found;
}
