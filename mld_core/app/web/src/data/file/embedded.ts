/** Data that the page brought along: a one-file report has no server. */
import { parts } from "../../state/filter";
import { Problem, type Query, type Reads, type Source } from "../source";
import type * as t from "../types";
import { cloudOfText, type Columns, type Held, type Swept } from "../points";
import { Column, unpacked, type ColumnInfo } from "./columns";
import { Pass, type FilePass } from "./pass";
import * as recount from "./recount";

/** The manifest of a file: answers that are the same whatever is asked, and the passes. */
export interface FileData {
  place: Pick<t.Place, "model" | "version" | "result" | "task" | "unit">;
  aliases: Record<string, string>;
  answers: Pick<Reads, "session" | "runs" | "run" | "vocabulary" | "verdicts" | "pictures">;
  passes: FilePass[];
  /** PNGs and JPEGs as base64, by split and input id. */
  pictures: Record<string, Record<string, string>>;
  points: Record<string, Record<string, { n: number; of: number; xyz: string }>>;
  cameras: Record<string, Record<string, t.Camera>>;
  left_out: string[];
  /** What changed from an earlier result, by split; the pairs are in the block. */
  compare?: Record<
    string,
    { page: Omit<t.Compared, "place">; before: t.Place; block: string; columns: ColumnInfo[] }
  >;
}

const ELSEWHERE = "A file cannot be written to: open the run with `mld ui`.";
/** Boxes of an image that are drawn. */
const FRAME_UNITS = 300;
const textOf = (value: unknown): string => (value === null || value === undefined ? "" : String(value));

export class EmbeddedSource implements Source {
  readonly writes = false;
  readonly deletes = false;
  readonly live = false;
  readonly #passes: Pass[];

  /** `text` gives the content of the file's element with an id. */
  constructor(
    readonly data: FileData,
    private readonly text: (id: string) => string,
  ) {
    this.#passes = data.passes.map((told) => new Pass(told, data.aliases, text));
  }

  /** The data of this document. */
  static ofPage(): EmbeddedSource {
    const text = (id: string): string => document.getElementById(id)?.textContent ?? "";
    return new EmbeddedSource(JSON.parse(text("mld-data")) as FileData, text);
  }

  async get<R extends keyof Reads>(route: R, query: Query = {}): Promise<Reads[R]> {
    return (await this.#answer(route, query)) as Reads[R];
  }

  async #answer(route: keyof Reads, query: Query): Promise<unknown> {
    const { answers } = this.data;
    if (route === "run") return { ...answers.run, place: this.#place(this.#pass(query)) };
    if (route in answers) return answers[route as keyof typeof answers];
    if (route === "export/formats")
      return {
        formats: [],
        labels: 0,
        conflicts: 0,
        commands: ["mld ui"],
        python: "",
      } satisfies t.ExportFormats;
    if (route === "compare" || route === "compare/pairs") return this.#compared(route, query);
    const pass = this.#pass(query);
    const filter = textOf(query.filter);
    const place = this.#place(pass);
    if (route === "evaluation") {
      if (!pass.held && filter === "") return { ...pass.told.evaluation, place };
      return {
        ...recount.evaluation(await pass.ready(), filter),
        filter_sentence: this.#sentence(pass, filter),
        place,
      };
    }
    if (route === "curves") return pass.told.curves;
    await pass.ready();
    return { ...(this.#ofRows(route, pass, filter, query) as object), place };
  }

  async columns(query: Query & { names: string }): Promise<Columns> {
    const pass = this.#pass(query);
    await pass.ready();
    const filter = textOf(query.filter);
    const rows = filter === "" ? null : pass.chosen(filter, "row");
    const made = new Map<string, Held>();
    for (const name of query.names.split(",")) {
      const { numbers, values } = pass.column(name) ?? {};
      if (name === "row") made.set(name, { numbers: rows ?? pass.chosen("", "row"), values: null });
      else if (numbers && rows === null)
        made.set(name, {
          numbers,
          values: values ?? (pass.column(name)?.kind === "boolean" ? [false, true] : null),
        });
    }
    return { rows: rows?.length ?? pass.told.rows, get: (name) => made.get(name) };
  }

  async cloud(query: Query & { id: string }): Promise<Swept | null> {
    const told = this.data.points[textOf(query.split) || this.#first()]?.[query.id];
    return told ? cloudOfText(told) : null;
  }

  async #compared(route: string, query: Query): Promise<t.Compared | t.SamplePairs> {
    const { compare } = this.data;
    const split = textOf(query.split);
    const told = compare?.[split || this.#first()] ?? (split ? undefined : Object.values(compare ?? {})[0]);
    if (told === undefined) {
      const said = split ? `Split '${split}' is not in both results.` : "No split is in both results.";
      throw new Problem(404, "Not in this file", said);
    }
    const place = this.#place(this.#pass({ split: told.page.split }));
    if (route === "compare") return { place, ...told.page };
    const kind = query.kind === "fixed" ? "fixed" : "regressed";
    const info = told.columns.find((one) => one.name === kind)!;
    const all = new Column(info, await unpacked(this.text(told.block))).values![0] as t.SamplePairs["rows"];
    const truth = textOf(query.truth);
    const rows = all.filter((one) => truth === "" || String(one.b.truth?.class) === truth);
    const [offset, limit] = [Number(query.offset ?? 0), Number(query.limit ?? 24)];
    const shown = rows.slice(offset, offset + limit);
    return { place, before: told.before, total: rows.length, offset, limit, rows: shown };
  }

  #ofRows(route: keyof Reads, pass: Pass, filter: string, query: Query): unknown {
    const sort = textOf(query.sort);
    if (route === "samples") return this.#samples(pass, filter, sort, query);
    if (route === "position") {
      const index = pass.chosen(filter, sort).indexOf(Number(query.row));
      return { index: index < 0 ? null : index };
    }
    if (route === "sample") return this.#sample(pass, query);
    if (route === "filter") return this.#filter(pass, filter);
    if (route === "facets") return recount.facets(pass, there(pass.told.facets), filter);
    if (route === "columns-info") return there(pass.told["columns-info"]);
    if (route === "confusion") return recount.confusion(pass, there(pass.told.confusion), filter);
    if (route === "map") return this.#map(pass, query);
    if (route === "heatmap") return this.#heatmap(pass, filter, query);
    if (route === "suspects") return this.#suspects(pass, query);
    throw new Problem(404, "Not in this file", `This file cannot answer '${route}'.`, null, "mld ui");
  }

  #pass(query: Query): Pass {
    const own = this.#passes.filter((one) => one.told.split === (query.split ?? this.#first()));
    const epoch = textOf(query.epoch);
    const found =
      epoch === ""
        ? own.at(-1)
        : own.find((one) => (one.told.epoch === null ? "none" : `${one.told.epoch}`) === epoch);
    if (found === undefined)
      throw new Problem(
        404,
        "Not in this file",
        `This file has no epoch ${epoch} of '${textOf(query.split)}'.`,
      );
    return found;
  }

  #first(): string {
    const splits = this.#passes.map((one) => one.told.split);
    return ["val", "test"].find((one) => splits.includes(one)) ?? splits[0] ?? "val";
  }

  #place(pass: Pass): t.Place {
    return { ...this.data.place, split: pass.told.split, epoch: pass.told.epoch };
  }

  #samples(pass: Pass, filter: string, sort: string, query: Query): Omit<t.Samples, "place"> {
    const offset = Number(query.offset ?? 0);
    const limit = Number(query.limit ?? 60);
    const rows = pass.chosen(filter, sort);
    const badge = sort === "worst" ? "" : (sort.split(",")[0] ?? "").replace(/^-/, "");
    return {
      total: rows.length,
      of: pass.told.rows,
      offset,
      limit,
      pages: Math.ceil(rows.length / limit),
      sort: sort || "worst",
      filter_sentence: this.#sentence(pass, filter),
      rows: Array.from(rows.subarray(offset, offset + limit), (row) => pass.sample(row, badge)),
    };
  }

  #sample(pass: Pass, query: Query): Omit<t.SamplePage, "place"> {
    const row = textOf(query.row) === "" ? pass.rowOf(textOf(query.id)) : Number(query.row);
    if (!(row >= 0 && row < pass.told.rows))
      throw new Problem(404, "No such sample", "It is not in this split.");
    const sample = pass.sample(row);
    const known = pass.detail(row);
    const codes = (pass.column("diagnosis")?.at(row) ?? []) as string[];
    // Of the first code the unit has its own severity and advice: it may be one to look at only.
    const first = pass.column("primary_code")?.at(row);
    const own = {
      action: textOf(pass.column("recommended_action")?.at(row)),
      severity: (pass.column("severity")?.at(row) ?? null) as number | null,
    };
    const missing =
      "This file holds probabilities, neighbours and history of the worst samples; `mld ui` has all.";
    return {
      sample,
      why: sample.why,
      action: own.action || null,
      text: [],
      probabilities: [],
      probabilities_missing: known === null ? missing : null,
      neighbours: [],
      history: [],
      findings: codes.flatMap((code) =>
        this.data.answers.vocabulary.findings
          .filter((one) => one.code === code)
          .map((one) => (code === first ? { ...one, ...own } : one)),
      ),
      fields: [],
      verdicts: [],
      conflict: false,
      frame: this.data.place.unit === "box" ? this.#frame(pass, sample) : null,
      picture: { has: sample.picture },
      ...known,
    };
  }

  /** The boxes of the image that a box is of, errors first. */
  #frame(pass: Pass, sample: t.Sample): t.SamplePage["frame"] {
    const [ids, wrong] = [pass.column("input_id"), pass.column("is_error")];
    const parts: [number[], number[]] = [[], []];
    for (let row = 0; row < pass.told.rows; row += 1)
      if (ids?.at(row) === sample.id) parts[wrong?.at(row) === true ? 0 : 1].push(row);
    const rows = parts.flat();
    const units = rows.slice(0, FRAME_UNITS).map((row) => pass.sample(row));
    const camera = this.data.cameras[pass.told.split]?.[sample.id] ?? null;
    const left_out = rows.length - units.length;
    const counts = { left_out, errors: parts[0].length, n: rows.length };
    return { id: sample.id, units, ...counts, size: sample.size ?? null, camera };
  }

  #filter(pass: Pass, filter: string): t.FilterAnswer {
    const total = pass.mask(filter).reduce((sum, one) => sum + one, 0);
    const chips = parts(filter).map((one) => ({ text: this.#words(pass, one), filter: one }));
    return { sentence: chips.map((one) => one.text).join(", "), chips, total, of: pass.told.rows };
  }

  #sentence(pass: Pass, filter: string): string {
    return filter === "" ? "" : this.#filter(pass, filter).sentence;
  }

  /** A part of a filter in the words the file has for it. */
  #words(pass: Pass, part: string): string {
    const { findings, categories } = pass.told.evaluation;
    const known = [...findings, ...categories].find((one) => one.filter === part);
    if (known !== undefined) return known.title.charAt(0).toLowerCase() + known.title.slice(1);
    if (part === "is_error = true") return "wrong";
    const finding = /^diagnosis has '(\w+)'$/.exec(part)?.[1];
    const title = this.data.answers.vocabulary.findings.find((one) => one.code === finding)?.title;
    if (title !== undefined) return title.charAt(0).toLowerCase() + title.slice(1);
    const told = /^(gt|prediction|suggested_label) = (\d+)$/.exec(part);
    if (told === null) return part;
    const name = pass.told.evaluation.class_names?.[Number(told[2])] ?? told[2]!;
    return `${{ gt: "truth", prediction: "predicted" }[told[1]!] ?? "suggested label"} ${name}`;
  }

  #heatmap(pass: Pass, filter: string, query: Query): t.Heatmap {
    const asked = [query.x, query.y, query.value].map(textOf).join();
    const maps = pass.told.heatmaps;
    const alias = (name: string): string => this.data.aliases[name] ?? name;
    const found = maps.find(
      (one) =>
        [alias(one.x.name), alias(one.y.name), one.value].join() === asked.split(",").map(alias).join(),
    );
    const map = found ?? maps[0];
    if (map === undefined)
      throw new Problem(404, "Not in this file", "This file holds no heatmap.", null, "mld ui");
    const whole =
      filter === "" ? "" : "Of the whole split: a file does not recount this map under a filter. ";
    return { ...map, sentence: `${whole}${map.sentence}` };
  }

  #map(pass: Pass, query: Query): t.FeatureMap {
    const fields = there(pass.told.facets).fields;
    const colour =
      textOf(query.colour) || (fields.find((one) => one.name === "category") ?? fields[0])?.name || "";
    const legend = fields.find((one) => one.name === colour) ?? null;
    const axes = ["pca_1", "pca_2"];
    const at = axes.map((name) => pass.column(name)?.numbers);
    const known = at.every((numbers) => numbers?.some((one) => !Number.isNaN(one)));
    const colours = fields
      .map(({ name, title }) => ({ name, title }))
      .filter(({ name }) => pass.column(name)?.kind !== "list");
    return { axes, there: known, colour, colours, legend, shared: [], note: "" };
  }

  #suspects(pass: Pass, query: Query): t.Suspects {
    const code = textOf(query.code);
    const suspected = pass.told.evaluation.findings.find((one) => one.code === code)?.n ?? 0;
    return {
      code,
      suspected,
      reviewed: 0,
      agreed: 0,
      precision: null,
      lo: null,
      hi: null,
      enough: false,
      remaining: suspected,
      sentence: ELSEWHERE,
      first: [],
    };
  }

  post(): Promise<never> {
    return Promise.reject(new Problem(405, "A file is read only", ELSEWHERE, null, "mld ui"));
  }

  follow(): () => void {
    return () => undefined;
  }

  cancel(): Promise<t.Job> {
    return this.post();
  }

  leave(): Promise<void> {
    return Promise.resolve();
  }

  picture(query: Query & { id: string }): string {
    const split = textOf(query.split) || this.#first();
    const found = this.data.pictures[split]?.[query.id];
    if (found === undefined) return "data:,";
    return `data:image/${found.startsWith("/9j/") ? "jpeg" : "png"};base64,${found}`;
  }

  download(): string | null {
    return null;
  }
}

function there<T>(answer: T | null): T {
  if (answer === null)
    throw new Problem(404, "Not in this file", "This file does not hold that.", null, "mld ui");
  return answer;
}
