/** Evaluations that were begun from the pages: looked at while one is on its way. */
import { source } from "../data";
import type { Job } from "../data/types";

const EVERY = 1000;

class Jobs {
  all = $state.raw<Job[]>([]);
  #looking = false;

  /** The last evaluation of a run, or map of one of its passes. */
  of(model: string, version: string, umap: Job["umap"]): Job | undefined {
    const made = (one: Job["umap"]): string =>
      one ? JSON.stringify([one.result, one.split, one.epoch]) : "";
    return this.all.find(
      (one) => one.model === model && one.version === version && made(one.umap) === made(umap),
    );
  }

  async start(model: string, version: string, what: Record<string, unknown>): Promise<Job> {
    const job = await source.post("jobs", { model, version, ...what });
    this.#put(job);
    void this.look();
    return job;
  }

  async cancel(job: Job): Promise<void> {
    this.#put(await source.cancel(job.job_id));
  }

  #put(job: Job): void {
    this.all = [job, ...this.all.filter((one) => one.job_id !== job.job_id)];
  }

  /** Look now, and again and again while one is on its way; a page that nobody sees waits. */
  async look(): Promise<void> {
    if (this.#looking || !source.writes) return;
    this.#looking = true;
    try {
      let more = true;
      while (more) {
        if (!document.hidden) this.all = (await source.get("jobs")).jobs;
        more = this.all.some(active);
        if (more) await new Promise((done) => setTimeout(done, EVERY));
      }
    } catch {
      // What else the page asks says that the server does not answer.
    } finally {
      this.#looking = false;
    }
  }
}

export const active = (job: Job | undefined): boolean => job?.state === "queued" || job?.state === "running";

export const jobs = new Jobs();
