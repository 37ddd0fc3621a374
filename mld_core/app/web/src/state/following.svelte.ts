/** Runs that a page follows: one stream while somebody looks at it, none while it is hidden. */
import { source } from "../data";
import type { Problem } from "../data/source";
import type { TrainedRun } from "../data/types";

const AGAIN = 5000;

export class Following {
  runs = $state.raw<TrainedRun[]>([]);
  problem = $state.raw<Problem>();
  /** Whether the server was not heard of since. */
  lost = $state(false);

  /** To be called in an effect: follows the runs of that text until it is called off. */
  follow(runs: string): () => void {
    let stop = (): void => undefined;
    let again: ReturnType<typeof setTimeout> | undefined;
    const hear = (news: TrainedRun[]): void => {
      clearTimeout(again);
      this.#keep(news);
    };
    const lose = (problem: Problem | null): void => {
      this.lost = true;
      clearTimeout(again);
      const refused = problem !== null && problem.status >= 400 && problem.status < 429;
      if (refused) this.problem = problem;
      else again = setTimeout(open, AGAIN); // where the browser does not do so by itself
    };
    const close = (): void => {
      stop();
      clearTimeout(again);
    };
    const open = (): void => {
      close();
      stop = document.hidden ? () => undefined : source.follow({ runs }, (news) => hear(news.runs), lose);
    };
    open();
    document.addEventListener("visibilitychange", open);
    return () => {
      close();
      document.removeEventListener("visibilitychange", open);
    };
  }

  #keep(news: TrainedRun[]): void {
    const same = (one: TrainedRun) => (two: TrainedRun) =>
      one.model === two.model && one.version === two.version;
    this.runs = [...this.runs.filter((one) => !news.some(same(one))), ...news];
    this.lost = false;
    this.problem = undefined;
  }

  of(model: string, version: string): TrainedRun | undefined {
    return this.runs.find((one) => one.model === model && one.version === version);
  }
}
