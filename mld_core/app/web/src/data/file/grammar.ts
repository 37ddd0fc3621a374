/** The filter language of views, over columns in the page: what the server's `compile_filter` says in SQL. */
import { Problem } from "../source";
import { within } from "../../map/shape";
import type { Column } from "./columns";

/** As in SQL a comparison with null is neither true nor false, and neither is its `not`. */
const FALSE = 0;
const TRUE = 1;
const UNKNOWN = 2;
type Mask = Uint8Array;
type Literal = string | number | boolean;
interface Token {
  kind: "number" | "text" | "column" | "name" | "word" | "op" | "mark";
  text: string;
  at: number;
}

const TOKEN =
  /\s*(?:([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|('(?:[^'\\]|\\[^])*'|"(?:[^"\\]|\\[^])*")|(`[^`]+`)|([\p{L}_][\p{L}\p{N}_./]*)|(==|=|!=|<>|<=|>=|<|>)|([(),]))/uy;
const KINDS = ["number", "text", "column", "name", "op", "mark"] as const;
const WORDS = new Set(["and", "or", "not", "in", "between", "is", "null", "true", "false"]);

function tokens(text: string): Token[] {
  const found: Token[] = [];
  const end = text.trimEnd().length;
  let at = 0;
  while (at < end) {
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    const place = match === null ? -1 : match.slice(1).findIndex((part) => part !== undefined);
    if (match === null || place < 0) throw wrong(text, `cannot read '${text.slice(at).trim().slice(0, 20)}'`);
    const value = match[place + 1]!;
    const word = KINDS[place] === "name" && WORDS.has(value.toLowerCase());
    found.push({
      kind: word ? "word" : KINDS[place]!,
      text: word ? value.toLowerCase() : value,
      at: match.index + match[0].length - value.length,
    });
    at = TOKEN.lastIndex;
  }
  return found;
}

const wrong = (text: string, why: string): Problem =>
  new Problem(400, "The filter cannot be read", `filter '${text}': ${why}`);

export class Grammar {
  readonly #text: string;
  readonly #tokens: Token[];
  #place = 0;

  private constructor(
    text: string,
    readonly column: (name: string) => Column | null,
    readonly rows: number,
  ) {
    this.#text = text;
    this.#tokens = tokens(text);
  }

  /** 1 where the filter holds, 0 elsewhere; all ones for an empty filter. */
  static mask(text: string, column: (name: string) => Column | null, rows: number): Mask {
    if (text.trim() === "") return new Uint8Array(rows).fill(TRUE);
    const grammar = new Grammar(text, column, rows);
    const made = grammar.#expression();
    if (grammar.#place < grammar.#tokens.length) throw grammar.#expected("'and', 'or' or the end");
    return made.map((one) => (one === TRUE ? 1 : 0));
  }

  #accept(kind: Token["kind"], ...texts: string[]): Token | null {
    const token = this.#tokens[this.#place];
    if (token?.kind !== kind || (texts.length > 0 && !texts.includes(token.text))) return null;
    this.#place += 1;
    return token;
  }

  #expected(what: string): Problem {
    const token = this.#tokens[this.#place];
    const found = token ? `'${token.text}' at character ${token.at + 1}` : "the end";
    return wrong(this.#text, `expected ${what}, found ${found}`);
  }

  #require(kind: Token["kind"], text: string): void {
    if (this.#accept(kind, text) === null) throw this.#expected(`'${text}'`);
  }

  #expression(): Mask {
    let made = this.#term();
    while (this.#accept("word", "or")) {
      const next = this.#term();
      made = made.map((one, row) =>
        one === TRUE || next[row] === TRUE ? TRUE : one === FALSE && next[row] === FALSE ? FALSE : UNKNOWN,
      );
    }
    return made;
  }

  #term(): Mask {
    let made = this.#factor();
    while (this.#accept("word", "and")) {
      const next = this.#factor();
      made = made.map((one, row) =>
        one === FALSE || next[row] === FALSE ? FALSE : one === TRUE && next[row] === TRUE ? TRUE : UNKNOWN,
      );
    }
    return made;
  }

  #factor(): Mask {
    if (this.#accept("word", "not")) return not(this.#factor());
    if (this.#accept("mark", "(")) {
      const inner = this.#expression();
      this.#require("mark", ")");
      return inner;
    }
    return this.#test();
  }

  #test(): Mask {
    const token = this.#accept("column") ?? this.#accept("name");
    if (token === null) throw this.#expected("a column name");
    if (token.text === "inside" && this.#accept("mark", "(")) return this.#inside();
    const name = token.text.replaceAll("`", "");
    const column = this.column(name);
    if (column === null) throw wrong(this.#text, `this file has no column '${name}'`);
    const negated = this.#accept("word", "not") !== null;
    const made = this.#condition(column, name, negated);
    return negated ? not(made) : made;
  }

  /** Points within a polygon; one without a place is in no polygon and in none's outside. */
  #inside(): Mask {
    const [x, y] = [this.#axis(), this.#axis()];
    const numbers = [this.#literal()];
    while (this.#accept("mark", ",")) numbers.push(this.#literal());
    this.#require("mark", ")");
    if (numbers.length % 2 || numbers.length < 6 || numbers.some((one) => typeof one !== "number"))
      throw wrong(this.#text, "expected the x and y of 3 or more corners");
    const corners = numbers.flatMap((one, at) =>
      at % 2 ? [] : [[Number(one), Number(numbers[at + 1])] as const],
    );
    const holds = within(corners);
    return Uint8Array.from({ length: this.rows }, (_, row) => {
      const place = [x.at(row), y.at(row)];
      return place.includes(null) ? UNKNOWN : holds(Number(place[0]), Number(place[1])) ? TRUE : FALSE;
    });
  }

  #axis(): Column {
    const token = this.#accept("column") ?? this.#accept("name");
    const column = token && this.column(token.text.replaceAll("`", ""));
    if (column?.kind !== "number") throw this.#expected("a column of numbers");
    this.#require("mark", ",");
    return column;
  }

  #condition(column: Column, name: string, negated: boolean): Mask {
    if (this.#accept("word", "in")) {
      const wanted = new Set(this.#list(column, name));
      return this.#each(column, (value) => wanted.has(value as Literal));
    }
    if (this.#accept("word", "between")) {
      const low = this.#value(column, name);
      this.#require("word", "and");
      const high = this.#value(column, name);
      return this.#each(column, (value) => (value as Literal) >= low && (value as Literal) <= high);
    }
    if (this.#accept("name", "has")) {
      if (column.kind !== "list") throw wrong(this.#text, `column '${name}' holds one value, no list`);
      const member = this.#literal();
      return this.#each(column, (value) => (value as unknown[]).includes(member));
    }
    if (this.#accept("name", "contains")) {
      const piece = String(this.#value(column, name)).toLowerCase();
      if (column.kind !== "text") throw wrong(this.#text, `column '${name}' holds no texts`);
      return this.#each(column, (value) => String(value).toLowerCase().includes(piece));
    }
    if (negated) throw this.#expected("'in' or 'between', 'has' or 'contains'");
    if (this.#accept("word", "is")) {
      const there = this.#accept("word", "not") !== null;
      this.#require("word", "null");
      return this.#each(column, () => there, there ? FALSE : TRUE);
    }
    return this.#comparison(column, name);
  }

  #comparison(column: Column, name: string): Mask {
    const operator = this.#accept("op");
    if (operator === null)
      throw this.#expected("a comparison (=, !=, <, <=, >, >=, in, between, is null, has, contains)");
    const value = this.#value(column, name);
    const tests: Record<string, (one: Literal) => boolean> = {
      "=": (one) => one === value,
      "==": (one) => one === value,
      "!=": (one) => one !== value,
      "<>": (one) => one !== value,
      "<": (one) => one < value,
      "<=": (one) => one <= value,
      ">": (one) => one > value,
      ">=": (one) => one >= value,
    };
    return this.#each(column, tests[operator.text] as (one: unknown) => boolean);
  }

  /** A test of every row: once for each text that is there, once for each number. */
  #each(column: Column, holds: (value: unknown) => boolean, ofNull: number = UNKNOWN): Mask {
    const said = (value: unknown): number =>
      value === null || value === undefined ? ofNull : holds(value) ? TRUE : FALSE;
    const made = new Uint8Array(this.rows);
    const { numbers, values } = column;
    if (numbers !== null && values !== null) {
      const known = values.map(said);
      for (let row = 0; row < this.rows; row += 1) made[row] = known[numbers[row]!] ?? ofNull;
    } else for (let row = 0; row < this.rows; row += 1) made[row] = said(column.at(row));
    return made;
  }

  #list(column: Column, name: string): Literal[] {
    this.#require("mark", "(");
    const made = [this.#value(column, name)];
    while (this.#accept("mark", ",")) made.push(this.#value(column, name));
    this.#require("mark", ")");
    return made;
  }

  #value(column: Column, name: string): Literal {
    const value = this.#literal();
    const given = typeof value === "string" ? "text" : typeof value;
    if (column.kind === "list")
      throw wrong(this.#text, `column '${name}' holds lists; write ${name} has 'text'`);
    if (given !== column.kind)
      throw wrong(this.#text, `column '${name}' holds a ${column.kind}, not a ${given}`);
    return value;
  }

  #literal(): Literal {
    const number = this.#accept("number");
    if (number !== null) return Number(number.text);
    const text = this.#accept("text");
    if (text !== null) return text.text.slice(1, -1).replace(/\\([^])/g, "$1");
    const word = this.#accept("word", "true", "false");
    if (word !== null) return word.text === "true";
    throw this.#expected("a number, a quoted text, true or false");
  }
}

const not = (mask: Mask): Mask => mask.map((one) => (one === UNKNOWN ? UNKNOWN : 1 - one));
