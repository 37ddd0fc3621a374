/** The source of this page. A one-file report brings its own data; else it is the server's. */
import { HttpSource } from "./http";
import type { Source } from "./source";

export const source: Source = new HttpSource();
