/** The source of this page. A one-file report brings its own data; else it is the server's. */
import { EmbeddedSource } from "./file/embedded";
import { HttpSource } from "./http";
import { inFile } from "./mode";
import type { Source } from "./source";

export const source: Source = inFile ? EmbeddedSource.ofPage() : new HttpSource();

// The data of a file, for its reader's console: `await mld.get("samples", { filter: "gt = 3" })`.
if (inFile) Object.assign(globalThis, { mld: source });
