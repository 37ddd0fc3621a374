/** The rows of a selection, however many: read by pages as they come in sight, the farthest forgotten first. */
import { SvelteMap, SvelteSet } from "svelte/reactivity";
import { source } from "../data";
import type { Problem, Query } from "../data/source";
import type { Place, Sample } from "../data/types";
import { asProblem } from "./loaded.svelte";

const PAGE = 60;
const KEPT = 24;

export class List {
  total = $state(0);
  of = $state(0);
  ready = $state(false);
  problem = $state.raw<Problem>();
  place = $state.raw<Place>();
  /** The column the rows are sorted by; empty where the worst come first. */
  sort = $state("");
  cursor = $state(0);
  /** Rows that are ticked, for one verdict on many. */
  readonly ticked = new SvelteSet<number>();
  readonly #pages = new SvelteMap<number, Sample[]>();
  // eslint-disable-next-line svelte/prefer-svelte-reactivity -- nothing is drawn from it
  readonly #asked = new Map<number, AbortController>();
  query: Query = {};
  #asker = "";

  /** Another selection: the old one stays in sight until the first page is there. */
  open(query: Query): void {
    const asker = JSON.stringify(query);
    if (asker === this.#asker) return;
    this.#asker = asker;
    this.query = query;
    for (const asked of this.#asked.values()) asked.abort();
    this.#asked.clear();
    this.ready = false;
    void this.#load(0, true);
  }

  at(index: number): Sample | undefined {
    return this.#pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  get current(): Sample | undefined {
    return this.at(this.cursor);
  }

  /** What is in sight: asked for where it is missing; what is out of sight is not waited for. */
  want(from: number, to: number): void {
    if (!this.ready) return;
    const first = Math.floor(Math.max(0, from) / PAGE);
    const last = Math.floor(Math.max(0, Math.min(to, this.total - 1)) / PAGE);
    for (const [page, asked] of this.#asked)
      if (page < first - 1 || page > last + 1) {
        asked.abort();
        this.#asked.delete(page);
      }
    for (let page = first; page <= last; page += 1)
      if (!this.#pages.has(page) && !this.#asked.has(page)) void this.#load(page, false);
    this.#forget((first + last) / 2);
  }

  move(step: number): void {
    this.cursor = Math.min(Math.max(0, this.cursor + step), Math.max(0, this.total - 1));
  }

  tick(index: number, on?: boolean): void {
    const row = this.at(index)?.row;
    if (row === undefined) return;
    if (on ?? !this.ticked.has(row)) this.ticked.add(row);
    else this.ticked.delete(row);
  }

  /** The ticked samples that are in memory, else the one at the cursor. */
  get chosen(): Sample[] {
    if (this.ticked.size === 0) return this.current ? [this.current] : [];
    return [...this.#pages.values()].flat().filter((one) => this.ticked.has(one.row));
  }

  #forget(middle: number): void {
    const far = [...this.#pages.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
    for (const page of far.slice(0, Math.max(0, far.length - KEPT)))
      if (!this.#pages.get(page)?.some((one) => this.ticked.has(one.row))) this.#pages.delete(page);
  }

  async #load(page: number, fresh: boolean): Promise<void> {
    const asked = new AbortController();
    this.#asked.set(page, asked);
    try {
      const query = { ...this.query, offset: page * PAGE, limit: PAGE };
      const answer = await source.get("samples", query, asked.signal);
      if (asked.signal.aborted) return;
      if (fresh) {
        this.#pages.clear();
        this.ticked.clear();
        this.cursor = 0;
        this.total = answer.total;
        this.of = answer.of;
        this.place = answer.place;
        this.sort = answer.sort === "worst" ? "" : answer.sort;
      }
      this.#pages.set(page, answer.rows);
      this.problem = undefined;
      this.ready = true;
    } catch (error) {
      if (asked.signal.aborted) return;
      this.problem = asProblem(error);
      if (fresh) this.#asker = "";
    } finally {
      if (this.#asked.get(page) === asked) this.#asked.delete(page);
    }
  }
}
