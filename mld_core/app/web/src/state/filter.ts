/** Filters are the view grammar of the project; here they are only taken apart at `and` and put together. */

const WORD = /[A-Za-z_]/;

/** The parts that a top-level `and` joins: quotes, backticks, parentheses and `between a and b` stay whole. */
export function parts(filter: string): string[] {
  const found: string[] = [];
  let depth = 0;
  let start = 0;
  let between = false;
  let at = 0;
  while (at < filter.length) {
    const sign = filter[at]!;
    if (sign === "'" || sign === "`" || sign === '"') {
      at += 1;
      while (at < filter.length && filter[at] !== sign) at += filter[at] === "\\" ? 2 : 1;
      at += 1;
    } else if (sign === "(" || sign === "[") {
      depth += 1;
      at += 1;
    } else if (sign === ")" || sign === "]") {
      depth -= 1;
      at += 1;
    } else if (WORD.test(sign)) {
      let end = at;
      while (end < filter.length && /\w/.test(filter[end]!)) end += 1;
      const word = filter.slice(at, end).toLowerCase();
      if (depth === 0 && word === "or") return [filter.trim()];
      if (depth === 0 && word === "between") between = true;
      else if (depth === 0 && word === "and") {
        if (between) between = false;
        else {
          found.push(filter.slice(start, at).trim());
          start = end;
        }
      }
      at = end;
    } else at += 1;
  }
  found.push(filter.slice(start).trim());
  return found.filter((part) => part !== "").flatMap(unwrapped);
}

/** `(a)` is `a`; `(a and b)` is its parts; `(a or b)` keeps its parentheses. */
function unwrapped(part: string): string[] {
  if (!part.startsWith("(") || closing(part) !== part.length - 1) return [part];
  const inner = part.slice(1, -1).trim();
  const inside = parts(inner);
  return inside.length === 1 && hasOr(inner) ? [part] : inside;
}

/** Where the parenthesis that opens the text closes. */
function closing(text: string): number {
  let depth = 0;
  for (let at = 0; at < text.length; at += 1) {
    const sign = text[at]!;
    if (sign === "'" || sign === "`" || sign === '"') {
      at += 1;
      while (at < text.length && text[at] !== sign) at += text[at] === "\\" ? 2 : 1;
    } else if (sign === "(") depth += 1;
    else if (sign === ")") {
      depth -= 1;
      if (depth === 0) return at;
    }
  }
  return -1;
}

const hasOr = (text: string): boolean => {
  const bare = text.replace(/'(\\.|[^'\\])*'|`[^`]*`|"(\\.|[^"\\])*"/g, "");
  let depth = 0;
  for (const [token] of bare.matchAll(/[()]|\bor\b/gi)) {
    if (token === "(") depth += 1;
    else if (token === ")") depth -= 1;
    else if (depth === 0) return true;
  }
  return false;
};

const whole = (part: string): string => (hasOr(part) ? `(${part})` : part);

export const joined = (list: string[]): string =>
  list.length === 1 ? list[0]! : list.map(whole).join(" and ");

/** The column and kind of a part that says one thing of one column: another one of it takes its place. */
const subject = (part: string): string | null => {
  const shape = /^inside\(\s*\w+\s*,\s*\w+\s*,/i.exec(part);
  if (shape) return shape[0].replace(/\s/g, "").toLowerCase();
  const told =
    /^(`[^`]+`|\w+)\s*(=|between|<=?|>=?)\s/i.exec(part) ?? /^(`[^`]+`|\w+)\s+(is|contains)\s/i.exec(part);
  if (!told) return null;
  return /^[<>]/.test(told[2]!) ? `${told[1]!} ${told[2]![0]!}` : told[1]!.toLowerCase();
};

/** Whether all that `added` says is said already. */
export const holds = (filter: string, added: string): boolean => {
  const said = new Set(parts(filter));
  const asked = parts(added);
  return asked.length > 0 && asked.every((part) => said.has(part));
};

/** The filter with `added`; without it where it was there; another value of the same column gives way. */
export function toggled(filter: string, added: string): string {
  const old = parts(filter);
  const fresh = parts(added);
  if (holds(filter, added)) return joined(old.filter((part) => !fresh.includes(part)));
  const taken = new Set(fresh.map(subject).filter((one) => one !== null));
  const kept = old.filter((part) => !fresh.includes(part) && !taken.has(subject(part) ?? ""));
  return joined([...kept, ...fresh]);
}

/** A text as a literal of the grammar. */
export const literal = (text: string): string => `'${text.replace(/\\/g, "\\\\").replace(/'/g, "\\'")}'`;

/** What is typed in the search field: a filter where it reads like one, else a piece of an id. */
export const searched = (typed: string): string => {
  const text = typed.trim();
  if (text === "") return "";
  const grammar = /^\(*\s*(not\s+)?(`[^`]+`|[A-Za-z_]\w*)\s*(=|!=|<|>|\s(in|between|is|has|contains)\s)/i;
  return grammar.test(text) || /^inside\(/i.test(text) ? text : `input_id contains ${literal(text)}`;
};
