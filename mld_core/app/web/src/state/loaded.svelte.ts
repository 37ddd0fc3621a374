/** One question to the source, asked again when what it is about changes. */
import { Problem } from "../data/source";

export class Loaded<T> {
  data = $state.raw<T>();
  problem = $state.raw<Problem>();
  loading = $state(true);
  #asked: AbortController | undefined;

  ask(question: (signal: AbortSignal) => Promise<T>): () => void {
    this.#asked?.abort();
    const asked = new AbortController();
    this.#asked = asked;
    this.loading = true;
    question(asked.signal).then(
      (data) => {
        if (asked.signal.aborted) return;
        this.data = data;
        this.problem = undefined;
        this.loading = false;
      },
      (error: unknown) => {
        if (asked.signal.aborted) return;
        this.problem = asProblem(error);
        this.loading = false;
      },
    );
    return () => asked.abort();
  }
}

export const asProblem = (error: unknown): Problem =>
  error instanceof Problem
    ? error
    : new Problem(0, "Something went wrong", error instanceof Error ? error.message : String(error));

/** In a component: what `question` reads is what it depends on; the last answer stays until the next is there. */
export function loaded<T>(question: (signal: AbortSignal) => Promise<T> | null): Loaded<T> {
  const state = new Loaded<T>();
  $effect(() => {
    const asked = new AbortController();
    const answer = question(asked.signal);
    if (answer === null) return;
    const stop = state.ask(() => answer);
    return () => {
      stop();
      asked.abort();
    };
  });
  return state;
}
