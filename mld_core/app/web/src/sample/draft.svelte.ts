/** The box that is being corrected or added in the sample in sight, until it is said or left. */
import type { Sample } from "../data/types";
import { rounded } from "./edit";

class Draft {
  /** As it is drawn; null while nothing is under the hand. */
  box = $state.raw<number[] | null>(null);
  kind = $state<"moved" | "missing">("moved");
  #row = $state<number | null>(null);

  open(sample: Sample, box: readonly number[], kind: "moved" | "missing" = "moved"): void {
    this.#row = sample.row;
    this.kind = kind;
    this.box = rounded(box);
  }

  change(box: readonly number[]): void {
    this.box = rounded(box);
  }

  of(sample: Sample): number[] | null {
    return this.#row === sample.row ? this.box : null;
  }

  close(): void {
    this.box = null;
    this.#row = null;
  }
}

export const draft = new Draft();
