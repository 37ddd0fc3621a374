/** What every page needs: the session, the words, the run in sight. */
import { source } from "../data";
import type { Problem } from "../data/source";
import type { Category, Place, RunPage, Session, Vocabulary } from "../data/types";
import { asProblem } from "./loaded.svelte";
import { url } from "./url.svelte";

class App {
  session = $state.raw<Session>();
  words = $state.raw<Vocabulary>();
  problem = $state.raw<Problem>();
  /** The run in sight, as the shell has loaded it. */
  run = $state.raw<RunPage>();
  /** Where the page stands: the server fills in what the address leaves open. */
  place = $state.raw<Place>();
  help = $state(false);
  theme = $state(remembered("theme", ""));

  async start(): Promise<void> {
    try {
      const [session, words] = await Promise.all([source.get("session"), source.get("vocabulary")]);
      this.words = words;
      if (!url.get("page")) url.set({ ...url.params, ...session.open }, "replace");
      this.session = session;
    } catch (error) {
      this.problem = asProblem(error);
    }
  }

  get page(): string {
    return url.get("page") || "home";
  }

  get classes(): string[] {
    return this.run?.class_names ?? [];
  }

  category(name: string | null): Pick<Category, "title" | "means" | "do"> | undefined {
    return this.words?.categories.find((one) => one.name === name);
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
