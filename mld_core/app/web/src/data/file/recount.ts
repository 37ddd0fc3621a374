/** What a page says of a selection, counted in the page: the answers for the whole pass, with their numbers anew. */
import { literal } from "../../state/filter";
import type * as t from "../types";
import type { Pass } from "./pass";

/** What has no class stands first. */
const classOf = (one: t.Named | null): number => one?.class ?? -1;

const BINS = 15;
const number = (n: number): string => n.toLocaleString("en-US");
const four = (value: number): number => Number(value.toPrecision(4));
const share = (n: number, of: number): number => (of === 0 ? 0 : four(n / of));

/** The page of an evaluation under a filter; metrics, regions and slices stay those of the pass. */
export function evaluation(pass: Pass, filter: string): t.Evaluation {
  const base = pass.told.evaluation;
  if (filter.trim() === "")
    return { ...base, first: first(pass, base.first.filter, base.first.sort, base.first.title) };
  const mask = pass.mask(filter);
  const wrong = pass.column("is_error");
  const selected: number[] = [];
  for (let row = 0; row < mask.length; row += 1) if (mask[row] === 1) selected.push(row);
  const labelled = selected.filter((row) => wrong?.at(row) !== null).length;
  const errors = selected.filter((row) => wrong?.at(row) === true).length;
  const found = findings(pass, mask, selected.length, base);
  const named = codes(pass, selected, errors, base);
  const steps = firstSteps(found, named.rows);
  const told = base.headline_parts.wrong_labels_filter?.split(" or ") ?? [];
  const own = found.filter((one) => told.includes(one.filter)).map((one) => one.filter);
  const suspects = own.length === 0 ? null : own.join(" or ");
  const suspected = suspects === null ? 0 : pass.count(mask, suspects);
  const worst = suspected > 0 ? suspects! : (steps[0]?.filter ?? "is_error = true");
  const title = suspected > 0 ? "The worst suspected labels" : (steps[0]?.title ?? "The worst");
  const sort = suspected > 0 ? base.first.sort : (steps[0]?.sort ?? "");
  return {
    ...base,
    counts: { ...base.counts, selected: selected.length, labelled, errors },
    headline: headline(base, errors, labelled, suspected, steps[0]),
    headline_parts: { errors, units: labelled, wrong_labels: suspected, wrong_labels_filter: suspects },
    filter_sentence: filter,
    first: first(pass, `(${filter}) and (${worst})`, sort ?? "", title),
    steps,
    categories: categories(pass, mask, base),
    findings: found,
    codes: named,
    calibration: {
      confidence: calibration(pass, selected, "confidence", false, base),
      error_proba: calibration(pass, selected, "error_proba", true, base),
    },
  };
}

/** What to do first: the most severe findings, else the commonest confusions. */
function firstSteps(found: t.Finding[], named: t.Code[]): t.Step[] {
  const open = (n: number): string => (n === 1 ? "Open it" : `Open these ${number(n)}`);
  const severe = found.filter((one) => (one.severity ?? 0) >= 3).slice(0, 5);
  if (severe.length > 0)
    return severe.map(({ title, n, action, severity, code, filter, sort }) => ({
      ...{ title, text: action, n, severity, code, filter, sort },
      button: open(n),
    }));
  return named.slice(0, 3).map((one) => ({
    title: `${one.truth ?? "nothing"} is taken for ${one.said ?? "nothing"}`,
    text: `${Math.round(100 * (one.share ?? 0))} % of all errors. ${one.action ?? ""}`,
    n: one.n,
    severity: null,
    code: null,
    filter: one.filter,
    sort: "",
    button: open(one.n),
  }));
}

function first(pass: Pass, filter: string, sort: string, title: string): t.Evaluation["first"] {
  const rows = pass.chosen(filter, sort);
  const badge = sort.replace(/^-/, "");
  const shown = Array.from(rows.subarray(0, 12), (row) => pass.sample(row, badge));
  return { title, filter, sort, total: rows.length, rows: shown };
}

function headline(
  base: t.Evaluation,
  errors: number,
  units: number,
  suspects: number,
  step: t.Step | undefined,
): string {
  const what = base.task === "classification" ? "" : " boxes";
  if (units === 0) return "Nothing is selected";
  const said =
    errors > 0 ? `${number(errors)} of ${number(units)}${what} wrong` : `All ${number(units)}${what} right`;
  if (suspects > 0) {
    const looks = suspects === 1 ? "looks like a wrong label" : "look like wrong labels";
    return `${said}; about ${number(suspects)} ${looks}: start here`;
  }
  if (step === undefined) return said;
  return `${said}; ${number(step.n)}: ${step.title.charAt(0).toLowerCase()}${step.title.slice(1)}: start here`;
}

function categories(pass: Pass, mask: Uint8Array, base: t.Evaluation): t.Category[] {
  const all = pass.mask("is_error = true");
  const wrong = mask.map((one, row) => one & all[row]!);
  const made = base.categories.map((one) => ({
    ...one,
    n: pass.count(mask, one.filter),
    errors: pass.count(wrong, one.filter),
  }));
  const total = made.reduce((sum, one) => sum + one.n, 0);
  return total === 0 ? [] : made.map((one) => ({ ...one, share: share(one.n, total) }));
}

function findings(pass: Pass, mask: Uint8Array, rows: number, base: t.Evaluation): t.Finding[] {
  return base.findings
    .map((one) => {
      const n = pass.count(mask, one.filter);
      return { ...one, n, primary: pass.count(mask, `primary_code = '${one.code}'`), share: share(n, rows) };
    })
    .filter((one) => one.n > 0)
    .sort((a, b) => (b.severity ?? 0) - (a.severity ?? 0) || b.n - a.n || (a.code < b.code ? -1 : 1));
}

interface Sum {
  n: number;
  confidence: number;
  sure: number;
  error_proba: number;
  stated: number;
  actions: Map<string, number>;
}

/** The action that most units of a code carry, of equally many the gravest. */
function commonest(sum: Sum, pass: Pass): { action: string; severity: number | null } {
  const told = [...sum.actions].map(([key, n]) => {
    const [action, severity] = JSON.parse(key) as [string, number | null];
    return { action, severity, n };
  });
  told.sort((a, b) => b.n - a.n || (b.severity ?? 0) - (a.severity ?? 0) || (a.action < b.action ? 1 : -1));
  const { action, severity } = told[0] ?? { action: pass.told.pair_action, severity: null };
  return { action, severity };
}

/** An error code that is not among the commonest of the pass, in words. */
function spelled(code: string, base: t.Evaluation): t.Code | null {
  const sides = /^CLS(\d+)->(\d+)/.exec(code);
  if (sides === null) return null;
  const [truth, said] = sides.slice(1).map((one) => base.class_names?.[Number(one)] ?? one) as [
    string,
    string,
  ];
  const filter = `error_code = ${literal(code)} and is_error = true`;
  const rest = { n: 0, share: null, confidence: null, error_proba: null, severity: null, action: null };
  return { code, truth, said, text: `${truth} taken for ${said}`, filter, ...rest };
}

/** Error codes of a selection, commonest first. */
function codes(pass: Pass, selected: number[], errors: number, base: t.Evaluation): t.Evaluation["codes"] {
  const wrong = pass.column("is_error");
  const code = pass.column("error_code");
  const advice = pass.column("recommended_action");
  const severity = pass.column("severity");
  const sums = new Map<unknown, Sum>();
  for (const row of selected) {
    const name = code?.at(row) ?? null;
    if (name === null || wrong?.at(row) !== true) continue;
    const sum = sums.get(name) ?? {
      n: 0,
      confidence: 0,
      sure: 0,
      error_proba: 0,
      stated: 0,
      actions: new Map(),
    };
    sum.n += 1;
    const sure = pass.column("confidence")?.at(row);
    if (typeof sure === "number") {
      sum.confidence += sure;
      sum.sure += 1;
    }
    const stated = pass.column("error_proba")?.at(row);
    if (typeof stated === "number") {
      sum.error_proba += stated;
      sum.stated += 1;
    }
    const action = advice?.at(row);
    if (typeof action === "string") {
      const key = JSON.stringify([action, severity?.at(row) ?? null]);
      sum.actions.set(key, (sum.actions.get(key) ?? 0) + 1);
    }
    sums.set(name, sum);
  }
  const known = new Map(base.codes.rows.map((one) => [one.code, one]));
  const rows = [...sums].flatMap(([name, sum]) => {
    const words = known.get(String(name)) ?? spelled(String(name), base);
    if (words === null) return [];
    const confidence = sum.sure === 0 ? null : four(sum.confidence / sum.sure);
    const error_proba = sum.stated === 0 ? null : four(sum.error_proba / sum.stated);
    return [
      { ...words, n: sum.n, share: share(sum.n, errors), confidence, error_proba, ...commonest(sum, pass) },
    ];
  });
  rows.sort((a, b) => b.n - a.n || (a.code < b.code ? -1 : 1));
  return { total: sums.size, rows: rows.slice(0, 200) };
}

function calibration(
  pass: Pass,
  selected: number[],
  name: string,
  happens: boolean,
  base: t.Evaluation,
): t.Calibration | null {
  const whole = base.calibration[name] ?? null;
  const stated = pass.column(name);
  const wrong = pass.column("is_error");
  if (whole === null || stated === null || wrong === null) return null;
  const n = new Array<number>(BINS).fill(0);
  const sums = new Array<number>(BINS).fill(0);
  const hits = new Array<number>(BINS).fill(0);
  for (const row of selected) {
    const p = stated.at(row);
    const y = wrong.at(row);
    if (typeof p !== "number" || typeof y !== "boolean") continue;
    const bin = Math.min(BINS - 1, Math.max(0, Math.trunc(p * BINS)));
    n[bin]! += 1;
    sums[bin]! += p;
    hits[bin]! += y === happens ? 1 : 0;
  }
  const units = n.reduce((sum, one) => sum + one, 0);
  if (units === 0) return null;
  const gap = n.reduce((sum, _, bin) => sum + Math.abs(sums[bin]! - hits[bin]!), 0) / units;
  const ece = four(gap);
  return {
    n,
    stated: n.map((one, bin) => (one === 0 ? null : four(sums[bin]! / one))),
    observed: n.map((one, bin) => (one === 0 ? null : four(hits[bin]! / one))),
    ece,
    units,
    sentence: whole.sentence.replace(/apart by [\d.]+/, `apart by ${(100 * ece).toFixed(1)}`),
  };
}

/** Facets with the counts of a selection. */
export function facets(pass: Pass, base: t.Facets, filter: string): t.Facets {
  const mask = pass.mask(filter);
  const of = mask.reduce((sum, one) => sum + one, 0);
  if (filter.trim() === "") return base;
  const fields = base.fields.map((field): t.Facet => {
    if (field.kind === "histogram") return { ...field, n: histogram(pass, mask, field.name, field.edges) };
    return { ...field, values: field.values.map((one) => ({ ...one, n: pass.count(mask, one.filter) })) };
  });
  return { of, fields };
}

function histogram(pass: Pass, mask: Uint8Array, name: string, edges: number[]): number[] {
  const column = pass.column(name);
  const n = new Array<number>(edges.length - 1).fill(0);
  for (let row = 0; row < mask.length; row += 1) {
    const value = mask[row] === 1 ? column?.at(row) : null;
    if (typeof value !== "number") continue; // what lies beyond the outer bins is theirs, as in their filters
    let bin = 0;
    while (bin < n.length - 1 && value >= edges[bin + 1]!) bin += 1;
    n[bin]! += 1;
  }
  return n;
}

/** Truth against prediction of a selection. */
export function confusion(pass: Pass, base: t.Confusion, filter: string): t.Confusion {
  if (filter.trim() === "") return base;
  const mask = pass.mask(filter);
  const truth = pass.column("gt");
  const said = pass.column("prediction");
  const [kind, judged] = [pass.column("unit_kind"), pass.column("is_error")];
  const boxes = pass.told.evaluation.task !== "classification";
  const table = base.rows.map(() => new Array<number>(base.columns.length).fill(0));
  for (let row = 0; row < mask.length; row += 1) {
    if (mask[row] !== 1 || (boxes && judged?.at(row) === null)) continue;
    const from = base.rows.indexOf(Number(truth?.at(row) ?? -1));
    const found = boxes && kind?.at(row) === "gt" ? null : said?.at(row);
    const wanted = base.columns.indexOf(Number(found ?? -1));
    const to = wanted < 0 ? base.columns.indexOf(-2) : wanted;
    if (from >= 0 && to >= 0 && (boxes || base.rows[from]! >= 0)) table[from]![to]! += 1;
  }
  return { ...base, ...named(base, table), ...filled(base, table) };
}

/** The matrix without rows and columns of no class that the selection leaves empty. */
function filled(
  base: t.Confusion,
  table: number[][],
): Pick<t.Confusion, "rows" | "columns" | "labels" | "column_labels" | "counts" | "share"> {
  const rows = base.rows.flatMap((one, at) => (one >= 0 || table[at]!.some((n) => n > 0) ? [at] : []));
  const columns = base.columns.flatMap((one, at) =>
    one >= 0 || table.some((row) => row[at]! > 0) ? [at] : [],
  );
  const counts = rows.map((at) => columns.map((other) => table[at]![other]!));
  return {
    rows: rows.map((at) => base.rows[at]!),
    columns: columns.map((at) => base.columns[at]!),
    labels: rows.map((at) => base.labels[at]!),
    column_labels: columns.map((at) => base.column_labels[at]!),
    counts,
    share: counts.map((row) => {
      const total = row.reduce((sum, n) => sum + n, 0);
      return row.map((n) => (total === 0 ? null : four(n / total)));
    }),
  };
}

function named(base: t.Confusion, table: number[][]): Pick<t.Confusion, "classes" | "pairs" | "sentence"> {
  const name = (one: number): t.Named | null =>
    one < 0 ? null : { class: one, name: base.labels[base.rows.indexOf(one)] ?? String(one) };
  const pairs: t.Pair[] = [];
  table.forEach((row, from) =>
    row.forEach((n, to) => {
      const [truth, said] = [base.rows[from]!, base.columns[to]!];
      if (n === 0 || truth === said) return;
      const filter = `${one("gt", truth)} and ${one("prediction", said)}`;
      pairs.push({ truth: name(truth), said: name(said), n, share: 0, filter });
    }),
  );
  const errors = pairs.reduce((sum, pair) => sum + pair.n, 0);
  for (const pair of pairs) pair.share = share(pair.n, errors);
  pairs.sort((a, b) => b.n - a.n || classOf(a.truth) - classOf(b.truth) || classOf(a.said) - classOf(b.said));
  const [top, most, rest] = [pairs.slice(0, 5), pairs.slice(5, 50), pairs.slice(50)];
  const held = top.reduce((sum, pair) => sum + pair.n, 0);
  return {
    classes: base.classes.flatMap((one) => {
      const row = table[base.rows.indexOf(one.class)];
      const n = row?.reduce((sum, count) => sum + count, 0) ?? 0;
      return n === 0 ? [] : [{ ...one, n, errors: n - (row![base.columns.indexOf(one.class)] ?? 0) }];
    }),
    pairs: {
      top,
      most,
      rest: { pairs: rest.length, n: rest.reduce((sum, pair) => sum + pair.n, 0), filter: null },
    },
    sentence:
      errors === 0
        ? "No errors."
        : `${top.length} of ${pairs.length} pairs hold ${Math.round((100 * held) / errors)} % of the errors`,
  };
}

const one = (column: string, value: number): string =>
  value < 0 ? `(${column} is null or ${column} < 0)` : `${column} = ${value}`;
