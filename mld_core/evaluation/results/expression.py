"""The filter language of views: comparisons of columns with literals, joined by and, or, not.

    expression := term ("or" term)*            term   := factor ("and" factor)*
    factor     := "not" factor | "(" expression ")" | test
    test       := column op literal            op     := = == != <> < <= > >=
                | column [not] in "(" literal ("," literal)* ")"
                | column [not] between literal and literal
                | column is [not] null
                | column [not] has literal              (columns that hold lists)
                | column [not] contains 'text'          (columns of texts, whatever the case)
                | inside "(" column "," column ("," x "," y)+ ")"     (points within a polygon)
    column     := name | `any text`            literal := number | 'text' | "text" | true | false

Text never reaches SQL: columns are looked up in the table's schema, literals travel as bound parameters. As
in SQL, a comparison with null is not true, and neither is its `not`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.errors import FilterError, near

Literal = str | int | float | bool

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
  | (?P<column>`[^`]+`)
  | (?P<name>[^\W\d][\w./]*)
  | (?P<op>==|=|!=|<>|<=|>=|<|>)
  | (?P<mark>[(),])
  )""",
    re.VERBOSE,
)
_WORDS = frozenset({"and", "or", "not", "in", "between", "is", "null", "true", "false"})
MOST_CORNERS = 64
"""Of a polygon."""

_SQL_OP = {"=": "=", "==": "=", "!=": "<>", "<>": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}


@dataclass(frozen=True)
class Compiled:
    """A condition for a WHERE clause: SQL with `?` marks, and the values for them in order."""

    sql: str
    parameters: tuple[Literal, ...]


@dataclass(frozen=True)
class Polygon:
    """The test `inside`: two columns, and the corners one after the other."""

    x: str
    y: str
    corners: tuple[tuple[float, float], ...]

    def rows(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int32]:
        """The rows of points that lie within, as the SQL finds them, in a sixth of its time.

        Args:
            x: (N,) the one column, NaN where there is none.
            y: (N,) the other.

        Example:
            >>> shape = Polygon("x", "y", ((0, 0), (1, 0), (0, 1)))
            >>> shape.rows(np.array([0.2, 2.0, np.nan]), np.array([0.2, 0.2, 0.2])).tolist()
            [0]
        """
        xs, ys = zip(*self.corners, strict=True)
        found = np.flatnonzero((x >= min(xs)) & (x <= max(xs)) & (y >= min(ys)) & (y <= max(ys)))
        across, up = x[found], y[found]
        odd = np.zeros(len(found), np.bool_)
        for (x1, y1), (x2, y2) in zip(self.corners, self.corners[1:] + self.corners[:1], strict=True):
            if y1 == y2:
                continue
            beside = np.flatnonzero((up >= min(y1, y2)) & (up < max(y1, y2)))
            odd[beside] ^= across[beside] < x1 + (up[beside] - y1) * ((x2 - x1) / (y2 - y1))
        return found[odd].astype(np.int32)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def compile_filter(text: str, schema: pa.Schema, aliases: Mapping[str, str] | None = None) -> Compiled:
    """Compile a filter for a table.

    Args:
        text: The expression, e.g. `"gt = 3 and confidence between 0.5 and 1"`.
        schema: Columns of the table; only those may be named.
        aliases: Further names and the columns they stand for.

    Raises:
        FilterError: The text does not parse, names an unknown column, or compares a column with a literal of
            another kind; the message says where and what is possible.

    Example:
        >>> schema = pa.schema([("gt", pa.int32()), ("weather", pa.string())])
        >>> compile_filter("gt = 3 and not weather in ('rain', 'fog')", schema)
        Compiled(sql='("gt" = ? AND NOT ("weather" IN (?, ?)))', parameters=(3, 'rain', 'fog'))
    """
    return _Parser(text, schema, dict(aliases or {})).parse()


def polygon_of(text: str, schema: pa.Schema, aliases: Mapping[str, str] | None = None) -> Polygon | None:
    """The polygon, where a filter is that test alone; else None.

    Raises:
        FilterError: As `compile_filter`.

    Example:
        >>> schema = pa.schema([("x", pa.float32()), ("y", pa.float32())])
        >>> polygon_of("inside(x, y, 0, 0, 1, 0, 0, 1)", schema).corners
        ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
        >>> polygon_of("not inside(x, y, 0, 0, 1, 0, 0, 1)", schema)
    """
    parser = _Parser(text, schema, dict(aliases or {}))
    first, *others = parser.tokens
    if (first.kind, first.text) != ("name", "inside") or not others or _closes(others) != len(others) - 1:
        return None
    parser.parse()
    return parser.polygon


def conjuncts(text: str) -> list[str]:
    """The parts of a filter that all must hold, as they were written; parentheses around a part are left out.

    Raises:
        FilterError: The text cannot be read.

    Example:
        >>> conjuncts("(gt = 3) and (a > 1 and b = 'x and y') and (c = 1 or d = 2)")
        ['gt = 3', 'a > 1', "b = 'x and y'", 'c = 1 or d = 2']
    """
    text = text.strip()
    depth, between, cuts = 0, 0, [(0, 0)]
    tokens = _tokens(text)
    for token in tokens:
        depth += (token.text == "(") - (token.text == ")") if token.kind == "mark" else 0
        if token.kind != "word" or depth:
            continue
        if token.text == "or":
            return [text]
        between += token.text == "between"
        if token.text == "and" and between:
            between -= 1
        elif token.text == "and":
            cuts.append((token.at, token.at + 3))
    if len(cuts) == 1:
        whole = tokens[0].text == "(" and _closes(tokens) == len(tokens) - 1
        return conjuncts(text[1:-1]) if whole else [text]
    ends = [*(start for start, _ in cuts[1:]), len(text)]
    return [one for (_, start), end in zip(cuts, ends, strict=True) for one in conjuncts(text[start:end])]


def _closes(tokens: list[_Token]) -> int:
    """The place of the mark that closes the one at the beginning."""
    depth = 0
    for place, token in enumerate(tokens):
        depth += (token.text == "(") - (token.text == ")") if token.kind == "mark" else 0
        if depth == 0:
            return place
    return -1


def quoted(column: str) -> str:
    """A column name as an SQL identifier; quotes in it are doubled.

    Example:
        >>> quoted("two words")
        '"two words"'
    """
    return '"' + column.replace('"', '""') + '"'


def find_column(name: str, schema: pa.Schema, aliases: Mapping[str, str]) -> str:
    """The column `name` stands for.

    Raises:
        FilterError: There is none; the message lists the near names.
    """
    column = aliases.get(name, name)
    if column in schema.names:
        return column
    options = [*schema.names, *aliases]
    raise FilterError(f"unknown column {name!r}{near(name, options)} (columns: {', '.join(schema.names)})")


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise FilterError(f"filter {text!r}: cannot read {text[at:].strip()[:20]!r}")
        kind, value = match.lastgroup, match.group(match.lastgroup)
        if kind == "name" and value.lower() in _WORDS:
            kind, value = "word", value.lower()
        tokens.append(_Token(kind, value, match.start(match.lastgroup)))
        at = match.end()
    if not tokens:
        raise FilterError('the filter is empty: expected e.g. "confidence > 0.9 and is_error = true"')
    return tokens


class _Parser:
    def __init__(self, text: str, schema: pa.Schema, aliases: dict[str, str]) -> None:
        self.text = text
        self.schema = schema
        self.aliases = aliases
        self.tokens = _tokens(text)
        self.position = 0
        self.parameters: list[Literal] = []
        self.polygon: Polygon | None = None
        """The last one that was read."""

    def parse(self) -> Compiled:
        sql = self._expression()
        if self._peek() is not None:
            raise self._error("'and', 'or' or the end")
        return Compiled(sql, tuple(self.parameters))

    def _peek(self) -> _Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _accept(self, kind: str, *texts: str) -> _Token | None:
        token = self._peek()
        if token is None or token.kind != kind or (texts and token.text not in texts):
            return None
        self.position += 1
        return token

    def _require(self, kind: str, text: str) -> None:
        if self._accept(kind, text) is None:
            raise self._error(repr(text))

    def _error(self, expected: str) -> FilterError:
        token = self._peek()
        found = f"{token.text!r} at character {token.at + 1}" if token else "the end"
        return FilterError(f"filter {self.text!r}: expected {expected}, found {found}")

    def _expression(self) -> str:
        parts = [self._term()]
        while self._accept("word", "or"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def _term(self) -> str:
        parts = [self._factor()]
        while self._accept("word", "and"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"

    def _factor(self) -> str:
        if self._accept("word", "not"):
            return f"NOT ({self._factor()})"
        if self._accept("mark", "("):
            inner = self._expression()
            self._require("mark", ")")
            return f"({inner})"
        return self._test()

    def _test(self) -> str:
        token = self._accept("column") or self._accept("name")
        if token is None:
            raise self._error("a column name")
        if (token.kind, token.text) == ("name", "inside") and self._accept("mark", "("):
            return self._inside()
        name = token.text.strip("`")
        column = find_column(name, self.schema, self.aliases)
        negated = self._accept("word", "not") is not None
        if self._accept("word", "in"):
            test = f"{quoted(column)} IN ({self._list(column)})"
        elif self._accept("word", "between"):
            low = self._value(column)
            self._require("word", "and")
            test = f"{quoted(column)} BETWEEN {low} AND {self._value(column)}"
        elif self._accept("name", "has"):
            test = f"list_contains({quoted(column)}, {self._value(column, member=True)})"
        elif self._accept("name", "contains"):
            test = f"contains(lower({quoted(column)}), lower({self._text(column)}))"
        elif negated:
            raise self._error("'in' or 'between', 'has' or 'contains'")
        elif self._accept("word", "is"):
            not_null = self._accept("word", "not") is not None
            self._require("word", "null")
            test = f"{quoted(column)} IS {'NOT ' if not_null else ''}NULL"
        else:
            operator = self._accept("op")
            if operator is None:
                raise self._error("a comparison (=, !=, <, <=, >, >=, in, between, is null, has, contains)")
            test = f"{quoted(column)} {_SQL_OP[operator.text]} {self._value(column)}"
        return f"NOT ({test})" if negated else test

    def _inside(self) -> str:
        """A point is inside where a ray from it crosses an odd number of edges."""
        across, up = self._axis(), self._axis()
        x, y = (f"CAST({quoted(one)} AS DOUBLE)" for one in (across, up))
        numbers = [self._number()]
        while self._accept("mark", ","):
            numbers.append(self._number())
        self._require("mark", ")")
        corners = list(zip(numbers[::2], numbers[1::2], strict=False))
        if len(numbers) % 2 or not 3 <= len(corners) <= MOST_CORNERS:
            wanted = f"expected the x and y of 3 to {MOST_CORNERS} corners"
            raise FilterError(f"filter {self.text!r}: {wanted}, found {len(numbers)} numbers")
        self.polygon = Polygon(across, up, tuple(corners))
        xs, ys = zip(*corners, strict=True)
        self.parameters += [min(xs), max(xs), min(ys), max(ys)]
        crossed = []
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y1 != y2:
                crossed.append(f"CAST(({y} >= ? AND {y} < ? AND {x} < ? + ({y} - ?) * ?) AS INTEGER)")
                self.parameters += [min(y1, y2), max(y1, y2), x1, y1, (x2 - x1) / (y2 - y1)]
        odd = f"({' + '.join(crossed or ['0'])}) % 2 = 1"
        return f"({x} BETWEEN ? AND ? AND {y} BETWEEN ? AND ? AND {odd})"

    def _axis(self) -> str:
        token = self._accept("column") or self._accept("name")
        if token is None:
            raise self._error("a column name")
        column = find_column(token.text.strip("`"), self.schema, self.aliases)
        if _kind_of(self.schema.field(column).type) != "number":
            raise FilterError(f"column {column!r} holds no numbers: it is no axis of a polygon")
        self._require("mark", ",")
        return column

    def _number(self) -> float:
        token = self._accept("number")
        if token is None:
            raise self._error("a number")
        return float(token.text)

    def _list(self, column: str) -> str:
        self._require("mark", "(")
        marks = [self._value(column)]
        while self._accept("mark", ","):
            marks.append(self._value(column))
        self._require("mark", ")")
        return ", ".join(marks)

    def _value(self, column: str, *, member: bool = False) -> str:
        value = self._literal()
        self._check_kind(column, value, member=member)
        self.parameters.append(value)
        return "?"

    def _text(self, column: str) -> str:
        if _kind_of(self.schema.field(column).type) != "text":
            raise FilterError(f"column {column!r} holds no texts: 'contains' looks into texts")
        return self._value(column)

    def _literal(self) -> Literal:
        if token := self._accept("number"):
            return int(token.text) if re.fullmatch(r"[+-]?\d+", token.text) else float(token.text)
        if token := self._accept("text"):
            return re.sub(r"\\(.)", r"\1", token.text[1:-1])
        if token := self._accept("word", "true", "false"):
            return token.text == "true"
        token = self._peek()
        if token is not None and (token.kind, token.text) == ("word", "null"):
            raise self._error("a literal (use 'is null' to test for null)")
        raise self._error("a number, a quoted text, true or false")

    def _check_kind(self, column: str, value: Literal, *, member: bool) -> None:
        kind = self.schema.field(column).type
        if member and not pa.types.is_list(kind):
            raise FilterError(f"column {column!r} holds one value, no list: compare it with '='")
        wanted = _kind_of(kind.value_type if member else kind)
        given = "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        if wanted == "other":
            lists = pa.types.is_list(kind)
            hint = f"; write {column} has 'text'" if lists else ""
            raise FilterError(f"column {column!r} holds {kind}: it cannot be compared in a filter{hint}")
        if wanted != given:
            example = {"number": "0.5", "text": "'text'", "boolean": "true"}[wanted]
            raise FilterError(
                f"filter {self.text!r}: column {column!r} holds a {wanted}, {value!r} is a {given}; write "
                f"e.g. {example}"
            )


def _kind_of(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else "other"
