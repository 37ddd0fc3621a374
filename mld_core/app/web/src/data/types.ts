/** What the pages' data looks like: the answers of `/ui/api`, one interface for each. */

export type Task = "classification" | "detection" | "detection3d";
export interface Place {
  model: string;
  version: string;
  result: string | null;
  split: string | null;
  epoch: number | null;
  task: Task;
  unit: "sample" | "box";
}
export interface Named {
  class: number;
  name: string;
}
export interface Session {
  csrf: string;
  author: string;
  /** What the reader may do beside looking. */
  may: ("write" | "delete")[];
  /** Whether a key opened the session, so that it can be left. */
  leaves: boolean;
  local: boolean;
  store: string | null;
  version: string;
  /** What to start with, where there is no run. */
  command?: string | null;
  open: { page: string; model?: string; version?: string };
  pictures: Pictures;
  points: PointFiles;
  runs: number;
}
/** Where points of 3D frames come from. */
export interface PointFiles {
  set: string | null;
  columns: number | null;
  allowed: boolean;
  sentence: string;
  checked?: number;
  found?: number;
  missing?: string | null;
  /** What is wrong with the first file that holds no points. */
  problem?: string | null;
}
/** How the camera of a 3D frame sees it. */
export interface Camera {
  /** The rows of the (3, 4) matrix from the boxes' frame to pixels. */
  to_image: number[];
  size: [number, number] | null;
}
export interface Pictures {
  set: string | null;
  kind: "template" | "csv" | "dataset" | null;
  recorded: boolean;
  allowed: boolean;
  sentence: string;
  checked?: number;
  found?: number;
  example?: string | null;
  missing?: string | null;
}
export interface Run {
  model: string;
  version: string;
  task: Task;
  created_at: string;
  state: "training" | "recorded" | "evaluated" | string;
  state_text: string;
  samples: number | null;
  splits: string[];
  epochs: number | null;
  metric: {
    name: string;
    title: string;
    better: "up" | "down";
    last: number | null;
    best: number | null;
    best_epoch: number | null;
    split: string | null;
  } | null;
  spark: (number | null)[];
  categories: Record<string, number> | null;
  action: {
    text: string;
    title?: string;
    finding: string;
    n: number;
    filter: string;
    split: string | null;
  } | null;
  /** What a search may name. */
  values?: Record<string, number | null> | null;
  results: string[];
  result: string | null;
  tags: string[];
  note: string;
  archived: boolean;
  command: string | null;
  headline: string | null;
}
export interface Gone {
  rows: number;
  files: number;
  bytes: number;
  results: number;
}
export interface Bulk {
  rows: { model: string; version: string; error: string | null; gone: Gone | null }[];
  failed: number;
}
export interface Runs {
  total: number;
  of: number;
  offset: number;
  search_help: string;
  runs: Run[];
  /** Of how many a search does not know yet. */
  unread: number;
  /** How many are on the other side: put away, or, of those, not. */
  archived: number;
  away: boolean;
}
export interface Message {
  severity: string;
  kind?: string;
  dataset?: string | null;
  n_epoch?: number | null;
  message: string;
}
export interface RunPage {
  run: Run;
  results: {
    result: string;
    completed_at: string | null;
    method: string | null;
    epochs: Record<string, (number | null)[]>;
  }[];
  passes: { split: string; epoch: number | null; pass?: number; sealed: boolean }[];
  class_names: string[] | null;
  n_class?: number | null;
  command: string | null;
  problems: Message[];
}
export interface Metric {
  name: string;
  title: string;
  unit: string;
  better: "up" | "down" | "" | null;
  means: string;
  value: number | null;
  lo: number | null;
  hi: number | null;
  before: number | null;
  series: [number, number | null][];
}
export interface Category {
  name: string;
  title: string;
  means: string;
  do: string;
  n: number;
  share: number;
  errors: number;
  filter: string;
}
export interface Finding {
  code: string;
  title: string;
  why: string;
  action: string;
  severity: number | null;
  n: number;
  primary: number;
  share: number;
  filter: string;
  sort: string | null;
}
export interface Code {
  code: string;
  truth: string | null;
  said: string | null;
  event?: string;
  text: string;
  n: number;
  share: number | null;
  confidence: number | null;
  error_proba: number | null;
  severity: number | null;
  action: string | null;
  filter: string;
}
export interface Step {
  title: string;
  text: string;
  n: number;
  severity: number | null;
  code: string | null;
  filter: string | null;
  sort: string | null;
  button: string | null;
}
export interface Calibration {
  n: (number | null)[];
  stated: (number | null)[];
  observed: (number | null)[];
  ece: number | null;
  units: number;
  sentence: string;
}
export interface Rated {
  n: number;
  errors: number;
  rate: number | null;
  sig: boolean | null;
  filter: string | null;
}
export interface Region extends Rated {
  region: number;
  label: string;
  membership?: number | null;
  classes: string[];
  codes: string[];
  medoid: string | null;
}
export interface Slice extends Rated {
  slice: string;
}
export interface Tide {
  name: string;
  title: string;
  means: string;
  fix: string;
  dap: number | null;
  n: number | null;
}
export interface VerdictCounts {
  reviewed: number;
  relabel: number;
  ok: number;
  ambiguous: number;
  hard: number;
  missing: number;
  nothing: number;
  moved: number;
  conflicts: number;
  since?: string | null;
  /** What became of the samples that were reviewed before this evaluation. */
  changed?: { sentence: string; [count: string]: unknown } | null;
  sentence: string;
}
export interface Evaluation {
  place: Place;
  task: Task;
  class_names: string[] | null;
  n_class: number | null;
  splits: { split: string; epochs: (number | null)[]; units: number; errors: number | null }[];
  counts: { units: number; selected: number; labelled: number; errors: number; samples: number };
  headline: string;
  headline_parts: {
    errors: number | null;
    units: number;
    wrong_labels: number | null;
    wrong_labels_filter: string | null;
  };
  filter_sentence: string;
  first: { title: string; filter: string; sort: string; total: number; rows: Sample[] };
  metrics: Metric[];
  steps: Step[];
  categories: Category[];
  categories_missing?: string | null;
  findings: Finding[];
  codes: { total: number; rows: Code[] };
  calibration: Record<string, Calibration | null>;
  regions: Region[];
  slices: Slice[];
  tide: Tide[];
  verdicts: VerdictCounts | null;
  problems: Message[];
  settings: { method: string; completed_at: string | null; sentence: string };
  note: string;
  review_state: "open" | "done";
}
export interface Curves {
  /** What each line of precision is: an IoU or a distance. */
  lines: string[];
  errors: { name: string; title: string; unit: string }[];
  at: string;
  recall: (number | null)[];
  classes: {
    name: string;
    class: number | null;
    truths: number;
    ap: (number | null)[];
    precision: (number | null)[][];
    errors: Record<string, (number | null)[]>;
  }[];
  left_out: number;
}
export type VerdictKind = "relabel" | "ok" | "ambiguous" | "hard" | "missing" | "nothing" | "moved";
export interface Verdict {
  kind: VerdictKind;
  label: Named | null;
  author: string;
  mine: boolean;
  id: string;
  conflict: boolean;
  note: string;
  at?: string;
  /** The right place of a true box, in the frame of the picture. */
  right?: number[] | null;
}
export interface Sample {
  row: number;
  id: string;
  truth: Named | null;
  said: Named | null;
  wrong: boolean | null;
  confidence: number | null;
  error_proba: number | null;
  loss: number | null;
  category: string | null;
  code: string | null;
  finding: { code: string; title: string; severity: number | null } | null;
  severity: number | null;
  suggested: Named | null;
  why: string;
  picture: boolean;
  hash: string | null;
  verdict: Verdict | null;
  badge: { column: string; value: number | string | null } | null;
  kind?: "prediction" | "missed" | string;
  event?: string | null;
  event_text?: string | null;
  iou?: number | null;
  truth_id?: string | null;
  detail?: unknown;
  suspicion?: number | null;
  miss_proba?: number | null;
  gt_idx?: number | null;
  box?: number[] | null;
  truth_box?: number[] | null;
  /** Velocity of a true 3D box that moves, metres a second. */
  moves?: number[] | null;
  size?: [number, number] | null;
  /** What a verdict is about: its label, or whether an object stands in a predicted box without a true one. */
  asks?: "label" | "object";
}
export interface Samples {
  place: Place;
  total: number;
  of: number;
  offset: number;
  limit: number;
  pages: number;
  sort: string;
  filter_sentence: string;
  rows: Sample[];
}
export interface HeardVerdict {
  author: string;
  kind: VerdictKind;
  label: Named | null;
  at: string;
  note: string;
  id: string;
  mine: boolean;
  /** The right place of a true box, as recorded. */
  right: number[] | null;
}
export interface SamplePage {
  place: Place;
  sample: Sample;
  why: string;
  action: string | null;
  text: string[];
  probabilities: { class: number; name: string; p: number; truth: boolean }[];
  probabilities_missing?: string | null;
  neighbours: {
    id: string;
    row: number | null;
    truth: Named | null;
    said: Named | null;
    wrong: boolean | null;
    picture: boolean;
    split: string;
  }[];
  history: {
    epoch: number | null;
    said: Named | null;
    wrong: boolean | null;
    confidence: number | null;
    error_proba: number | null;
    loss: number | null;
  }[];
  findings: { code: string; title: string; why: string; action: string; severity: number | null }[];
  fields: { name: string; title?: string; value: unknown; filter: string | null }[];
  verdicts: HeardVerdict[];
  conflict: boolean;
  frame: {
    id: string;
    units: Sample[];
    left_out: number;
    errors: number;
    n_gt?: number;
    n_pred?: number;
    n: number;
    size: [number, number] | null;
    /** Boxes that people drew into it: objects without a label. */
    drawn?: { box: number[] | null; label: Named | null; author: string; mine: boolean; id: string }[];
    camera?: Camera | null;
    /** Why it is not known how the camera sees the frame. */
    camera_note?: string | null;
  } | null;
  picture: { has: boolean } | null;
}
export type Facet =
  | {
      name: string;
      title: string;
      kind: "values";
      values: { value: unknown; text: string; n: number; of: number; filter: string }[];
      more: number;
    }
  | {
      name: string;
      title: string;
      kind: "histogram";
      low: number;
      high: number;
      edges: number[];
      n: number[];
      of: number[];
      filters: string[];
    };
export interface Facets {
  of: number;
  fields: Facet[];
}
export interface ColumnsInfo {
  columns: { name: string; type: string; title: string; sortable: boolean }[];
}
/** What the map needs beside its points. */
export interface FeatureMap {
  /** The other axes, where they can be made; not in a file. */
  umap?: { made: boolean; fitted: number | null; seconds: number; missing: string } | null;
  axes: string[];
  there: boolean;
  colour: string;
  colours: { name: string; title: string }[];
  legend: Facet | null;
  /** Splits whose points lie in the same space. */
  shared: string[];
  note: string;
}
export interface FilterAnswer {
  sentence: string;
  chips: { text: string; filter: string }[];
  total: number;
  of: number;
}
export interface Pair {
  truth: Named | null;
  said: Named | null;
  n: number;
  share: number | null;
  filter: string;
}
export interface Confusion {
  classes: { class: number; name: string; n: number; errors: number }[];
  labels: string[];
  rows: number[];
  columns: number[];
  column_labels: string[];
  counts: number[][];
  share: (number | null)[][];
  left_out: number;
  pairs: { top: Pair[]; most: Pair[]; rest: { pairs: number; n: number; filter: string | null } };
  sentence: string;
}
export interface HeatAxis {
  name: string;
  title: string;
  labels: string[];
  values: unknown[];
}
export interface Heatmap {
  x: HeatAxis;
  y: HeatAxis;
  value: string;
  overall: number | null;
  cells: {
    i: number[];
    j: number[];
    n: number[];
    errors: (number | null)[];
    raw: (number | null)[];
    value: (number | null)[];
    lo: (number | null)[];
    hi: (number | null)[];
    sig: (boolean | null)[];
  };
  filters: { x: (string | null)[]; y: (string | null)[] };
  presets: { x: string; y: string; value: string; title: string }[];
  sentence: string;
}
export interface VerdictRow {
  split: string;
  id: string;
  truth: number | null;
  box: number[] | null;
  row: number | null;
  stands: VerdictKind | "conflict";
  label: Named | null;
  given: Named | null;
  heard: HeardVerdict[];
}
export interface Verdicts {
  total: number;
  counts: Record<VerdictKind | "conflicts", number>;
  rows: VerdictRow[];
  problems: string[];
  authors: string[];
  class_names?: string[] | null;
}
export interface Progress {
  code: string;
  suspected: number;
  reviewed: number;
  agreed: number;
  precision: number | null;
  lo: number | null;
  hi: number | null;
  enough: boolean;
  remaining: number;
  sentence: string;
}
export interface Suspects extends Progress {
  first: Sample[];
}
export interface Given {
  verdicts: { row: number; id: string; kind: VerdictKind; label: Named | null; author: string; at: string }[];
  progress: Progress | null;
}
export interface ExportFormats {
  formats: { name: string; title: string; available: boolean; why: string | null }[];
  labels: number;
  conflicts: number;
  commands: string[];
  python: string | null;
}
/** What is known of a sealed pass. */
export interface PassFigures {
  split: string;
  epoch: number | null;
  pass: number;
  sealed_at: string;
  rows: number;
  /** An evaluation, the one beside the training, or the records alone. */
  of: "result" | "live" | "records" | "";
  result: string | null;
  values: Record<string, number>;
  categories: Record<string, number | null> | null;
  notes: string[];
}
export interface TrainedRun {
  model: string;
  version: string;
  task: Task;
  state: "training" | "between" | "died" | "ended" | "none" | "gone";
  state_text: string;
  splits: string[];
  /** Passes whose figures are still to be made. */
  unread: number;
  metrics: {
    name: string;
    title: string;
    unit: string;
    better: "up" | "down" | "";
    means: string;
    first: boolean;
  }[];
  rows: PassFigures[];
}
/** An evaluation that was begun from a page. */
export interface Job {
  kind: "evaluation" | "umap";
  /** The pass whose coordinates are made. */
  umap: { result: string; split: string; epoch: string } | null;
  job_id: string;
  model: string;
  version: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  stage: string;
  progress: number;
  /** Since it began, to its end; null while it waits. */
  seconds: number | null;
  result: string | null;
  reason: string | null;
  /** Sample rows of the passes that it looks at, where known. */
  rows: number | null;
  /** Seconds that it will take on, as far as the last one of the run tells of it. */
  left: number | null;
}
export interface Vocabulary {
  categories: { name: string; title: string; means: string; do: string }[];
  findings: { code: string; title: string; severity: number | null; why: string; action: string }[];
  verdicts: {
    kind: VerdictKind;
    title: string;
    key: string;
    about: ("label" | "object")[];
    means?: string;
  }[];
  events: Record<string, string>;
}
/** A table of what moved: a change is good where it goes `better`, and in bold where chance does not explain it. */
export interface ComparedTable {
  id: string;
  title: string;
  note: string;
  heads: { title: string; kind: "name" | "value" | "count" | "change" }[];
  rows: {
    name: string;
    hint: string;
    /** The class whose samples the row opens. */
    truth: number | null;
    unit: string;
    better: "up" | "down" | "";
    sure: boolean;
    values: (number | null)[];
  }[];
}
export interface Compared {
  place: Place;
  task: Task;
  split: string;
  splits: string[];
  /** Before and after. */
  sides: { model: string; version: string; result: string; epoch: number | null; completed_at: string }[];
  counts: {
    n_fixed: number;
    n_regressed: number;
    n_only_a: number;
    n_only_b: number;
    [name: string]: unknown;
  };
  p: number | null;
  sentence: string;
  tables: ComparedTable[];
}
/** More than two results; the first is what the others are compared with. */
export interface Together {
  split: string;
  splits: string[];
  sides: Compared["sides"];
  counts: { n_common: number; n_all: number; n_some: number; n_none: number };
  sentence: string;
  heads: Pick<Metric, "name" | "title" | "unit" | "better" | "means">[];
  /** Of each result, each metric. */
  values: {
    value: number | null;
    change: number | null;
    low: number | null;
    high: number | null;
    best: boolean;
  }[][];
  /** Of each other result. */
  against: {
    n_paired: number;
    n_fixed: number;
    n_regressed: number;
    holm_p: number | null;
    better: number;
  }[];
}
export interface TogetherRows {
  places: Place[];
  total: number;
  offset: number;
  limit: number;
  rows: (Sample | null)[][];
}
export interface SamplePairs {
  place: Place;
  before: Place;
  total: number;
  offset: number;
  limit: number;
  rows: { a: Sample; b: Sample }[];
}
