// What the pages may weigh: the first load in gzip, and the lines that a reader of TypeScript and Svelte has to read.
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const MOST_BYTES = 150_000;
const MOST_LINES = 10_500;

const files = (folder) =>
  readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? files(path) : [path];
  });

/** Lines without style sheets: those are no program. */
const linesOf = (path) => {
  const text = readFileSync(path, "utf-8").replace(/<style>[^]*?<\/style>/g, "");
  return text.split("\n").length - 1;
};

const sources = files("src").filter((path) => /\.(ts|svelte)$/.test(path) && !path.includes(".test."));
const lines = sources.reduce((sum, path) => sum + linesOf(path), 0);

const page = readFileSync("../static/index.html", "utf-8");
const loaded = [...page.matchAll(/(?:src|href)="\.\/(assets\/[^"]+)"/g)].map(([, path]) => path);
const bytes = ["index.html", ...loaded].reduce(
  (sum, path) => sum + gzipSync(readFileSync(join("../static", path))).length,
  0,
);

console.log(
  `app: first load ${bytes} of ${MOST_BYTES} bytes gzip, ${lines} of ${MOST_LINES} lines without styles`,
);
if (loaded.length < 2 || bytes > MOST_BYTES || lines > MOST_LINES) process.exit(1);
