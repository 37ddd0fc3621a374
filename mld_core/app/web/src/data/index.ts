/** The source of this page. A one-file report brings its own data; else it is the server's. */
import { EmbeddedSource } from "./file/embedded";
import { HttpSource } from "./http";
import type { Source } from "./source";

export const source: Source = import.meta.env.MODE === "file" ? EmbeddedSource.ofPage() : new HttpSource();

// The data of a file, for its reader's console: `await mld.get("samples", { filter: "gt = 3" })`.
if (import.meta.env.MODE === "file") Object.assign(globalThis, { mld: source });
