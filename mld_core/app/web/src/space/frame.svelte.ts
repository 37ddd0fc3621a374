/** What the drawings of a frame share: the box that is pointed at, what is hidden, and its points. */
import { SvelteSet } from "svelte/reactivity";
import type { Swept } from "../data/points";
import type { Sample } from "../data/types";

class Frame {
  /** Row of the box under the pointer, in whichever drawing. */
  hot = $state<number | null>(null);
  /** Sources that are not drawn: `true`, `predicted`, `missed`, `points`; and `labels`, of other boxes, at first. */
  readonly hidden = new SvelteSet<string>(["labels"]);
  points = $state.raw<Swept | null>(null);
  /** Whether the last frame that answered has none. */
  none = $state(false);
  /** What follows and what was before: their points are read before they are asked for. */
  beside = $state.raw<Sample[]>([]);

  /** No frame is in sight. */
  clear(): void {
    [this.hot, this.points, this.none] = [null, null, false];
  }
  toggle(source: string): void {
    if (!this.hidden.delete(source)) this.hidden.add(source);
  }
  /** The boxes of a sample that are drawn. */
  shapes(one: Sample): { box: number[]; kind: "truth" | "said"; missed: boolean }[] {
    const missed = one.kind === "missed";
    const [truth, said] = [this.hidden.has(missed ? "missed" : "true"), this.hidden.has("predicted")];
    return [
      ...(one.truth_box && !truth ? [{ box: one.truth_box, kind: "truth" as const, missed }] : []),
      ...(one.box && !said ? [{ box: one.box, kind: "said" as const, missed: false }] : []),
    ];
  }
}

export const frame = new Frame();

export const labelOf = (one: Sample): string =>
  one.box && one.said
    ? one.said.name
    : one.truth
      ? `${one.truth.name}${one.kind === "missed" ? ", missed" : ""}`
      : "";
