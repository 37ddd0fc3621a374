/** Points of frames: those in sight and the next, a few of them in memory at most. */
import type { Query } from "../data/source";
import type { Swept } from "../data/points";

/** Frames whose points are kept: the one in sight, two ahead and behind, and where one came from. */
export const KEPT = 6;

export class Clouds {
  readonly #held = new Map<string, { found: Promise<Swept | null>; asked: AbortController }>();

  constructor(
    private readonly ask: (query: Query & { id: string }, signal: AbortSignal) => Promise<Swept | null>,
  ) {}

  get size(): number {
    return this.#held.size;
  }

  /** The points of a frame, asked for once while it is kept; what was used longest ago goes first. */
  of(query: Query & { id: string }): Promise<Swept | null> {
    const key = JSON.stringify(query);
    let one = this.#held.get(key);
    if (!one) {
      const asked = new AbortController();
      const made = { asked, found: this.ask(query, asked.signal) };
      made.found.catch(() => this.#held.get(key) === made && this.#held.delete(key));
      one = made;
    }
    this.#held.delete(key);
    this.#held.set(key, one);
    for (const old of this.#held.keys()) {
      if (this.#held.size <= KEPT) break;
      this.#drop(old);
    }
    return one.found;
  }

  /** Ends what is still asked for. */
  close(): void {
    for (const key of this.#held.keys()) this.#drop(key);
  }

  #drop(key: string): void {
    this.#held.get(key)?.asked.abort();
    this.#held.delete(key);
  }
}

/** Heights between which colours run: nearly all of the points, in half metres. */
export function heights(z: Float32Array): [number, number] {
  const step = Math.max(1, Math.floor(z.length / 2_000));
  const some = z.filter((_, at) => at % step === 0).sort();
  const at = (share: number): number => some[Math.round(share * (some.length - 1))] ?? 0;
  const [low, high] = [Math.floor(2 * at(0.02)) / 2, Math.ceil(2 * at(0.98)) / 2 + 0]; // no "-0 m"
  return [low, Math.max(low + 1, high)];
}
