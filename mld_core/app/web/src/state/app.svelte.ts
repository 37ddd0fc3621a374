/** What every page needs: the session, the words, the run in sight. */
import { source } from "../data";
import type { Problem } from "../data/source";
import type { Category, Place, RunPage, Sample, Session, Vocabulary } from "../data/types";
import { asProblem } from "./loaded.svelte";
import { url } from "./url.svelte";

class App {
  session = $state.raw<Session>();
  words = $state.raw<Vocabulary>();
  problem = $state.raw<Problem>();
  /** The run in sight, as the shell has loaded it. */
  run = $state.raw<RunPage>();
  help = $state(false);
  /** Counts what asks for the run in sight to be read again: it was evaluated. */
  again = $state(0);
  theme = $state(remembered("theme", ""));

  async start(): Promise<void> {
    try {
      const [session, words] = await Promise.all([source.get("session"), source.get("vocabulary")]);
      this.words = words;
      if (!url.get("page")) url.set({ ...url.params, ...session.open }, "replace");
      this.session = session;
      this.problem = undefined;
    } catch (error) {
      this.problem = asProblem(error);
    }
  }

  get page(): string {
    return url.get("page") || "home";
  }

  /** The result in sight: the one of the address, else the newest. */
  get result(): RunPage["results"][number] | undefined {
    const asked = url.get("result") || this.run?.run.result;
    return this.run?.results.find((one) => one.result === asked);
  }

  /** Where the page stands: what the address leaves open is the newest result's validation split, last epoch. */
  get place(): Place | undefined {
    const run = this.run?.run;
    if (!run) return undefined;
    const epochs = this.result?.epochs ?? {};
    const first = ["val", "test", Object.keys(epochs)[0]].find((one) => one !== undefined && one in epochs);
    const split = url.get("split") || (first ?? null);
    const asked = url.get("epoch");
    const last = split === null ? null : (epochs[split]?.at(-1) ?? null);
    const epoch = asked === "" ? last : asked === "none" ? null : Number(asked);
    const { model, version, task } = run;
    const unit = task === "classification" ? "sample" : "box";
    return { model, version, task, unit, result: this.result?.result ?? null, split, epoch };
  }

  get classes(): string[] {
    return this.run?.class_names ?? Array.from({ length: this.run?.n_class ?? 0 }, (_, one) => String(one));
  }

  category(name: string | null): Pick<Category, "title" | "means" | "do"> | undefined {
    return this.words?.categories.find((one) => one.name === name);
  }

  /** What can be said of a sample. */
  verdicts(sample: Sample | undefined): Vocabulary["verdicts"] {
    const about = (this.words?.verdicts ?? []).filter((one) => one.about.includes(sample?.asks ?? "label"));
    return about.sort((a, b) => a.key.localeCompare(b.key));
  }

  setTheme(theme: string): void {
    this.theme = theme;
    remember("theme", theme);
  }
}

/** Small likings of a reader (theme, widths, closed panels) stay in the browser; where it forbids, in memory. */
export function remembered(name: string, otherwise: string): string {
  try {
    return localStorage.getItem(`mld.${name}`) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name: string, value: string): void {
  try {
    localStorage.setItem(`mld.${name}`, value);
  } catch {
    // Nothing to keep it in.
  }
}

export const app = new App();
