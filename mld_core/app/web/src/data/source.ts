/** Where the pages' data comes from: the one interface that the pages know. */
import type { Columns, Swept } from "./points";
import type * as t from "./types";

/** Routes that are read, and what each answers. */
export interface Reads {
  session: t.Session;
  runs: t.Runs;
  run: t.RunPage;
  evaluation: t.Evaluation;
  filter: t.FilterAnswer;
  samples: t.Samples;
  position: { index: number | null; total?: number };
  sample: t.SamplePage;
  facets: t.Facets;
  "columns-info": t.ColumnsInfo;
  confusion: t.Confusion;
  heatmap: t.Heatmap;
  curves: t.Curves | null;
  map: t.FeatureMap;
  verdicts: t.Verdicts;
  suspects: t.Suspects;
  "export/formats": t.ExportFormats;
  pictures: t.Pictures;
  points: t.PointFiles;
  jobs: { jobs: t.Job[] };
  training: { runs: t.TrainedRun[] };
  vocabulary: t.Vocabulary;
  compare: t.Compared;
  "compare/pairs": t.SamplePairs;
  "compare/many": t.Together;
  "compare/many/rows": t.TogetherRows;
}

/** Routes that are written, and what each answers. */
export interface Writes {
  "runs/tags": { tags: string[] };
  "runs/note": { note: string };
  "runs/bulk": t.Bulk;
  "evaluation/note": { note: string; review_state: "open" | "done" };
  verdicts: t.Given;
  "verdicts/undo": { undone: number; progress: t.Progress | null };
  "verdicts/accept": { accepted: number; rows: number[]; ids: string[] | null; progress: t.Progress };
  pictures: t.Pictures;
  points: t.PointFiles;
  jobs: t.Job;
}

export type Query = Record<string, string | number | null | undefined>;

export interface Source {
  /** Whether verdicts, notes and pictures can be written: a file on disk cannot. */
  readonly writes: boolean;
  /** Whether runs can be deleted. */
  readonly deletes: boolean;
  /** Whether it tells what is new: a file on disk does not. */
  readonly live: boolean;
  get<R extends keyof Reads>(route: R, query?: Query, signal?: AbortSignal): Promise<Reads[R]>;
  post<R extends keyof Writes>(route: R, body: unknown): Promise<Writes[R]>;
  /** Whole columns of a selection. */
  columns(query: Query & { names: string }, signal?: AbortSignal): Promise<Columns>;
  /** The points of a 3D frame; null where there are none. */
  cloud(query: Query & { id: string }, signal?: AbortSignal): Promise<Swept | null>;
  /** Hears what is new of some runs until the function it returns is called; `lost` also where it goes on later. */
  follow(
    query: Query,
    heard: (news: Reads["training"]) => void,
    lost: (problem: Problem | null) => void,
  ): () => void;
  /** Ends an evaluation. */
  cancel(job: string): Promise<t.Job>;
  /** Ends the session, where a key opened it. */
  leave(): Promise<void>;
  /** The address of a sample's picture, for `img` and SVG `image`. */
  picture(query: Query & { id: string; size: "thumb" | "full" }): string;
  /** The address of an export to download; null where there is none. */
  download(query: Query & { format: string }): string | null;
}

/** A refusal, in the words of the server: what is wrong and what to do. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly fix: string | null = null,
    readonly command: string | null = null,
    /** Whether a key is asked for. */
    readonly signIn = false,
  ) {
    super(detail || title);
    this.name = "Problem";
  }
}

export const queryOf = (query: Query = {}): string => {
  const pairs = Object.entries(query).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  return pairs.map(([key, value]) => `${key}=${encodeURIComponent(String(value))}`).join("&");
};
