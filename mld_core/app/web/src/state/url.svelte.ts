/** All state of a page that a person may reload, share or go back to lies in its address. */
import type { Query } from "../data/source";

type Params = Record<string, string>;
type Changes = Record<string, string | number | null | undefined>;

const read = (): Params => Object.fromEntries(new URLSearchParams(location.search));

/** What is empty is not named in an address. */
const changed = (params: Params, changes: Changes): Params =>
  Object.fromEntries(
    Object.entries({ ...params, ...changes })
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => [name, String(value)]),
  );

class Url {
  params = $state.raw<Params>(read());

  constructor() {
    addEventListener("popstate", () => (this.params = read()));
  }

  get(name: string): string {
    return this.params[name] ?? "";
  }

  /** What the server is asked about: which run, result, split and epoch. */
  get place(): Query {
    const { model, version, result, split, epoch } = this.params;
    return { model, version, result, split, epoch };
  }

  set(changes: Changes, how: "push" | "replace" = "push"): void {
    const next = changed(this.params, changes);
    this.params = next;
    try {
      history[how === "push" ? "pushState" : "replaceState"](null, "", this.href(next));
    } catch {
      // A frame without an address of its own (a notebook) keeps its state in memory.
    }
  }

  /** The address of this page with changes, for links that also open in a new tab. */
  link(changes: Changes): string {
    return this.href(changed(this.params, changes));
  }

  href(params: Params): string {
    const pairs = Object.entries(params).map(([name, value]) => `${name}=${readable(value)}`);
    return pairs.length ? `?${pairs.join("&")}` : location.pathname;
  }
}

/** Encoded as far as it must be: spaces as +, and what reads well in an address stays. */
const readable = (text: string): string =>
  encodeURIComponent(text)
    .replace(/%20/g, "+")
    .replace(/%(3D|2C|3A|2F)/g, (one) => decodeURIComponent(one));

export const url = new Url();

/** Another run: nothing of what was selected in the last one holds. */
export const runChanges = (model: string, version: string, page = "evaluation"): Changes => ({
  ...{ page, model, version, result: null, split: null, epoch: null },
  ...{ filter: null, sort: null, sel: null, search: null, show: null, x: null, y: null, value: null },
  ...{ colour: null, view: null, behind: null, axes: null },
  ...{ a_model: null, a_version: null, a_result: null, a_epoch: null, kind: null, truth: null, of: null },
  ...{ with: null, at: null },
});
