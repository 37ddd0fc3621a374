/** Verdicts as they are given here: shown at once, taken back with one key. */
import { SvelteMap } from "svelte/reactivity";
import { source } from "../data";
import type { Place, Progress, Sample, Verdict, VerdictKind } from "../data/types";
import { app } from "./app.svelte";
import { count, many } from "./format";
import { asProblem } from "./loaded.svelte";

export interface Correction {
  kind: "moved" | "nothing" | "missing";
  /** Boxes as they are drawn. */
  right?: number[];
  drawn?: number[];
  label?: number;
}
const SAID = { moved: "box corrected", nothing: "no object in the true box", missing: "box added" };

type Step = { ids: string[]; before: [string, Verdict | null][] };

class Review {
  /** What stands by what was done here; it goes before what the server said when the sample was read. */
  #said = new SvelteMap<string, Verdict | null>();
  #steps = $state.raw<Step[]>([]);
  progress = $state.raw<Progress | null>(null);
  /** Told to the reader: what the last key did. */
  told = $state.raw<{ text: string; bad: boolean } | null>(null);
  /** Counts the changes: what shows verdicts asks again. */
  changes = $state(0);
  /** The sample whose right label has to be chosen by hand. */
  asking = $state.raw<number | null>(null);

  of(place: Place | undefined, sample: Sample): Verdict | null {
    const said = place ? this.#said.get(key(place, sample.row)) : undefined;
    return said === undefined ? sample.verdict : said;
  }

  get undoable(): boolean {
    return this.#steps.length > 0;
  }

  /** Gives one verdict on some samples. Returns whether it stands. */
  async give(place: Place, samples: Sample[], kind: VerdictKind, label?: number): Promise<boolean> {
    const items = [];
    for (const sample of samples) {
      const right =
        kind === "relabel" ? (label ?? rightLabel(sample)) : kind === "missing" ? (label ?? null) : null;
      if (kind === "relabel" && right === null) {
        this.asking = sample.row;
        return this.#refuse("Which label is right? Choose it beside the picture.");
      }
      items.push({ row: sample.row, kind, ...(right === null ? {} : { label: right }), note: "" });
    }
    try {
      const given = await source.post("verdicts", { ...place, items });
      const before = samples.map((one): [string, Verdict | null] => [
        key(place, one.row),
        this.of(place, one),
      ]);
      for (const one of given.verdicts)
        this.#said.set(key(place, one.row), { ...one, mine: true, conflict: false, note: "" });
      this.#steps = [...this.#steps, { ids: given.verdicts.map((one) => one.id), before }];
      this.progress = given.progress ?? this.progress;
      this.asking = null;
      const title = app.words?.verdicts.find((one) => one.kind === kind)?.title ?? kind;
      const what = samples.length === 1 ? (samples[0]?.id ?? "") : many(samples.length, "sample");
      const name = given.verdicts[0]?.label?.name;
      this.told = {
        text: name && samples.length === 1 ? `${what}: ${name}` : `${what}: ${title}`,
        bad: false,
      };
      this.changes += 1;
      return true;
    } catch (error) {
      return this.#refuse(asProblem(error).message);
    }
  }

  /** Says where a true box lies, that there is none, or that an object that was drawn lacks a label. */
  async correct(place: Place, sample: Sample, said: Correction): Promise<boolean> {
    try {
      const given = await source.post("verdicts", {
        ...place,
        items: [{ row: sample.row, note: "", ...said }],
      });
      const name = key(place, sample.row);
      const before: Step["before"] = said.drawn ? [] : [[name, this.of(place, sample)]];
      const own = { mine: true, conflict: false, note: "", right: said.right ?? null };
      for (const one of given.verdicts) if (!said.drawn) this.#said.set(name, { ...one, ...own });
      this.#steps = [...this.#steps, { ids: given.verdicts.map((one) => one.id), before }];
      this.told = { text: `${sample.id}: ${SAID[said.kind]}`, bad: false };
      this.changes += 1;
      return true;
    } catch (error) {
      return this.#refuse(asProblem(error).message);
    }
  }

  /** Takes the last step back: of this page, else the person's last one. */
  async undo(place: Place): Promise<void> {
    const step = this.#steps.at(-1);
    const { model, version } = place;
    try {
      const answer = await source.post(
        "verdicts/undo",
        step ? { model, version, ids: step.ids } : { model, version, last: true },
      );
      this.#steps = this.#steps.slice(0, -1);
      if (step) for (const [name, verdict] of step.before) this.#said.set(name, verdict);
      else this.#said.clear();
      this.progress = answer.progress ?? this.progress;
      this.told = {
        text: answer.undone ? `${count(answer.undone)} taken back` : "Nothing to take back",
        bad: false,
      };
      this.changes += 1;
    } catch (error) {
      this.#refuse(asProblem(error).message);
    }
  }

  /** Takes some of one's own words back. */
  async takeBack(place: Place, ids: string[]): Promise<void> {
    const { model, version } = place;
    try {
      const answer = await source.post("verdicts/undo", { model, version, ids });
      this.#steps = this.#steps.filter((step) => !step.ids.some((one) => ids.includes(one)));
      this.told = { text: `${count(answer.undone)} taken back`, bad: false };
      this.changes += 1;
    } catch (error) {
      this.#refuse(asProblem(error).message);
    }
  }

  /** Accepts what is suggested for the rest of the suspects. */
  async accept(place: Place, code: string, limit: number): Promise<void> {
    try {
      const answer = await source.post("verdicts/accept", { ...place, code, limit });
      const before = answer.rows.map((row): [string, Verdict | null] => [key(place, row), null]);
      if (answer.ids) this.#steps = [...this.#steps, { ids: answer.ids, before }];
      this.progress = answer.progress;
      this.told = { text: `${many(answer.accepted, "label")} accepted as suggested`, bad: false };
      this.changes += 1;
    } catch (error) {
      this.#refuse(asProblem(error).message);
    }
  }

  #refuse(text: string): false {
    this.told = { text, bad: true };
    return false;
  }
}

const key = (place: Place, row: number): string =>
  JSON.stringify([place.model, place.version, place.result, place.split, place.epoch, row]);

/** The label that a plain "label wrong" means: the suggested one, else what the model said. */
export const rightLabel = (sample: Sample): number | null => {
  const right = sample.suggested?.class ?? sample.said?.class ?? null;
  return right === null || right === sample.truth?.class ? null : right;
};

export const review = new Review();
