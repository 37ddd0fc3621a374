/** Data from the server that the page came from. */
import { Problem, queryOf, type Query, type Reads, type Source, type Writes } from "./source";
import { unpackedCloud, unpackedColumns, type Columns, type Swept } from "./points";
import type { Job } from "./types";

const text = (value: unknown): string | null => (typeof value === "string" && value ? value : null);

const problemOf = async (answer: Response): Promise<Problem> => {
  const body: Record<string, unknown> = await answer.json().catch(() => ({}));
  const local = answer.status === 401 && body.sign_in !== true;
  if (local) body.title = "This session has ended";
  return new Problem(
    answer.status,
    text(body.title) ?? answer.statusText,
    text(body.detail) ?? "",
    text(body.fix),
    local ? "mld ui" : text(body.command),
    body.sign_in === true,
  );
};

/** Trades a key for a session, at a team's server. */
export async function signIn(key: string): Promise<void> {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch("session", { method: "POST", headers, body: JSON.stringify({ key }) });
  if (!answer.ok) throw await problemOf(answer);
}

export class HttpSource implements Source {
  writes = true;
  deletes = true;
  readonly live = true;
  #csrf = "";
  #points = false;

  async #ask(route: string, init: RequestInit): Promise<Response> {
    let answer: Response;
    try {
      answer = await fetch(`api/${route}`, { credentials: "same-origin", ...init });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new Problem(0, "The server does not answer", "It may have been stopped.", null, "mld ui");
    }
    if (!answer.ok) throw await problemOf(answer);
    return answer;
  }

  async get<R extends keyof Reads>(route: R, query: Query = {}, signal?: AbortSignal): Promise<Reads[R]> {
    const asked = queryOf(query);
    const answer = await this.#ask(asked ? `${route}?${asked}` : route, { signal: signal ?? null });
    const body = (await answer.json()) as Reads[R];
    if (route === "session") {
      const { csrf, may, points } = body as Reads["session"];
      this.#points = points.set !== null;
      this.#csrf = csrf;
      this.writes = may.includes("write");
      this.deletes = may.includes("delete");
    }
    return body;
  }

  async columns(query: Query, signal?: AbortSignal): Promise<Columns> {
    const answer = await this.#ask(`columns?${queryOf(query)}`, { signal: signal ?? null });
    return unpackedColumns(await answer.arrayBuffer());
  }

  async cloud(query: Query & { id: string }, signal?: AbortSignal): Promise<Swept | null> {
    if (!this.#points) return null;
    try {
      const answer = await this.#ask(`cloud?${queryOf(query)}`, { signal: signal ?? null });
      return unpackedCloud(await answer.arrayBuffer());
    } catch (error) {
      if (error instanceof Problem && error.status === 404) return null;
      throw error;
    }
  }

  #changes(method: "POST" | "DELETE", body: unknown): RequestInit {
    const headers = { "Content-Type": "application/json", "X-MLD-CSRF": this.#csrf };
    return { method, headers, body: JSON.stringify(body) };
  }

  async post<R extends keyof Writes>(route: R, body: unknown): Promise<Writes[R]> {
    const answer = await this.#ask(route, this.#changes("POST", body));
    return (await answer.json()) as Writes[R];
  }

  follow(
    query: Query,
    heard: (news: Reads["training"]) => void,
    lost: (problem: Problem | null) => void,
  ): () => void {
    const stream = new EventSource(`api/training/events?${queryOf(query)}`);
    stream.onmessage = (event: MessageEvent<string>) => heard(JSON.parse(event.data) as Reads["training"]);
    stream.onopen = () => heard({ runs: [] });
    stream.onerror = () => {
      // A stream that is refused does not say why; the same question without one does.
      if (stream.readyState !== EventSource.CLOSED) lost(null);
      else this.get("training", query).then((news) => (heard(news), lost(null)), lost);
    };
    return () => stream.close();
  }

  async cancel(job: string): Promise<Job> {
    const answer = await this.#ask(`jobs/${job}`, this.#changes("DELETE", {}));
    return (await answer.json()) as Job;
  }

  async leave(): Promise<void> {
    await fetch("session", { method: "DELETE", headers: { "X-MLD-CSRF": this.#csrf } });
    location.reload();
  }

  picture(query: Query & { id: string; size: "thumb" | "full" }): string {
    return `api/picture?${queryOf(query)}`;
  }

  download(query: Query & { format: string }): string {
    return `api/export?${queryOf(query)}`;
  }
}
