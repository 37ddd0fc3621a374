"""Sentences that pages show: a filter in words, why a unit is here, what a result says first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.errors import FilterError
from mld_core.evaluation.results.expression import conjuncts
from mld_core.evaluation.results.view import ALIASES

WRONG_LABELS = ("C01", "D20", "D21", "D22", "D23", "D24", "T20", "T21", "T22")
"""Diagnoses that say a label is at fault."""

TITLES: Mapping[str, str] = {
    "gt": "truth",
    "prediction": "predicted",
    "confidence": "confidence",
    "is_error": "wrong",
    "error_proba": "error probability",
    "category": "category",
    "error_code": "error code",
    "primary_code": "main finding",
    "diagnosis": "finding",
    "severity": "severity",
    "loss": "loss",
    "entropy": "entropy",
    "label_quality": "label quality",
    "suggested_label": "suggested label",
    "region_id": "region",
    "input_id": "id",
    "dataset": "split",
    "n_epoch": "epoch",
    "local_error_rate": "error rate around it",
    "ambiguity": "ambiguity",
    "unit_kind": "kind",
    "iou": "overlap (IoU)",
    "suspicion": "suspicion",
    "miss_proba": "miss probability",
}
CLASS_COLUMNS = frozenset({"gt", "prediction", "suggested_label"})
_TEST = re.compile(
    r"(?P<column>`[^`]+`|[\w./]+)\s*(?P<op>==|=|!=|<>|<=|>=|<|>|has|contains)\s*(?P<value>.+)", re.DOTALL
)
_BETWEEN = re.compile(
    r"(?P<column>`[^`]+`|[\w./]+)\s+between\s+(?P<low>\S+)\s+and\s+(?P<high>\S+)", re.IGNORECASE
)
_NOT = re.compile(r"not\s*\(([^()]*)\)", re.IGNORECASE)
_INSIDE = re.compile(r"inside\(\s*(`[^`]+`|[\w./]+)\s*,\s*(`[^`]+`|[\w./]+)\s*,[^()]*\)", re.IGNORECASE)
_SAID = {"<": "below", "<=": "at most", ">": "above", ">=": "at least", "!=": "not", "<>": "not"}


def literal(value: Any) -> str:
    r"""A value as the filter grammar writes it.

    Example:
        >>> literal("it's"), literal(3), literal(True)
        ("'it\\'s'", '3', 'true')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def column_text(name: str) -> str:
    """A column as the filter grammar writes it.

    Example:
        >>> column_text("gt"), column_text("two words")
        ('gt', '`two words`')
    """
    return name if re.fullmatch(r"[^\W\d][\w./]*", name) else f"`{name}`"


def title(column: str) -> str:
    """A column in words.

    Example:
        >>> title("gt"), title("weather"), title("field_category")
        ('truth', 'weather', 'category (yours)')
    """
    if column.startswith("field_"):
        return f"{column.removeprefix('field_')} (yours)"
    return TITLES.get(column, column.replace("_", " "))


def chips(condition: str, names: Sequence[str] | None) -> list[dict[str, str]]:
    """The parts of a filter that all must hold, each in words.

    Example:
        >>> chips("gt = 1 and prediction = 0 and confidence > 0.9", ["cat", "dog"])[0]
        {'text': 'truth dog', 'filter': 'gt = 1'}

    Raises:
        FilterError: The filter cannot be read.
    """
    if not condition.strip():
        return []
    return [{"text": _words(one, names), "filter": one} for one in conjuncts(condition)]


def filter_sentence(condition: str, names: Sequence[str] | None) -> str:
    """A filter in words.

    Example:
        >>> filter_sentence("gt = 1 and is_error = true and diagnosis has 'C01'", ["cat", "dog"])
        'truth dog, wrong, suspected wrong label'
    """
    try:
        return ", ".join(one["text"] for one in chips(condition, names))
    except FilterError:
        return condition


def _words(test: str, names: Sequence[str] | None) -> str:
    denied = _NOT.fullmatch(test)
    spanned = f"not {_words(denied[1], names)}" if denied else _span_words(test)
    if spanned is not None:
        return spanned
    found = _TEST.fullmatch(test)
    if found is None or re.search(r"\b(and|or)\b", found["value"]):
        return test
    column, op, text = _column(found["column"]), found["op"], found["value"].strip()
    value = re.sub(r"\\(.)", r"\1", text[1:-1]) if text[:1] in {"'", '"'} else text
    if column == "is_error" and op in {"=", "=="}:
        return "wrong" if value == "true" else "right"
    if column in {"diagnosis", "primary_code"} and value in BY_CODE:
        known = BY_CODE[value].title
        return known[:1].lower() + known[1:]
    if column in CLASS_COLUMNS and value.lstrip("-").isdigit():
        number = int(value)
        value = names[number] if names is not None and 0 <= number < len(names) else value
    if column == "category":
        said = value.replace("_", " ")
        return said if op in {"=", "=="} else f"category {_SAID.get(op, op)} {said}"
    return " ".join(
        one for one in (title(column), _SAID.get(op, "" if op in {"=", "=="} else op), value) if one
    )


def _span_words(test: str) -> str | None:
    """A range or a shape in words."""
    between = _BETWEEN.fullmatch(test)
    if between is not None:
        return f"{title(_column(between['column']))} {between['low']} to {between['high']}"
    inside = _INSIDE.fullmatch(test)
    if inside is None:
        return None
    x, y = (_column(one) for one in inside.groups())
    if (x, y) in {("pca_1", "pca_2"), ("umap_1", "umap_2")}:
        return "lasso on the map"
    return f"a shape over {title(x)} and {title(y)}"


def _column(text: str) -> str:
    bare = text.strip("`")
    return ALIASES.get(bare, bare)


def why_sample(card: Mapping[str, Any]) -> str:
    """Why a sample is here, in one sentence.

    Args:
        card: `truth` and `said` (names or None), `suggested`, `confidence`, `wrong`, `codes` (diagnoses, the
            main one first).

    Example:
        >>> why_sample({"truth": "5", "said": "4", "suggested": "4", "confidence": 0.97, "wrong": True,
        ...     "codes": ["C01"]})
        'The label says 5; the model (97 % sure) and the samples around it say 4.'
    """
    truth, said, sure = card["truth"], card["said"], card["confidence"]
    sureness = "" if sure is None else f" ({sure:.0%} sure)".replace("%", " %")
    codes = card["codes"]
    if said is None:
        return "The model gave no finite answer."
    if truth is None:
        return f"Unlabelled; the model says {said}{sureness}."
    if "C01" in codes and card["suggested"] is not None:
        other = card["suggested"]
        if other == said:
            return f"The label says {truth}; the model{sureness} and the samples around it say {other}."
        return f"The label says {truth}, the model {said}{sureness}; the samples around it say {other}."
    head = f"{truth} taken for {said}{sureness}" if card["wrong"] else f"Right: {said}{sureness}"
    finding = next((BY_CODE[code] for code in codes if code in BY_CODE), None)
    if finding is None:
        return f"{head}."
    because = finding.when.rstrip(".")
    return f"{head}. {finding.title}: {because[:1].lower()}{because[1:]}."


def why_box(card: Mapping[str, Any]) -> str:
    """Why a box is here, in one sentence.

    Args:
        card: As of `why_sample`, with `event` in words and `missed`.

    Example:
        >>> why_box({"truth": "car", "said": None, "suggested": None, "confidence": None, "wrong": True,
        ...     "codes": ["D06"], "event": "missed object", "missed": True})
        'car was not found. Missed.'
    """
    truth, said, sure = card["truth"], card["said"], card["confidence"]
    sureness = "" if sure is None else f" (score {sure:.2f})"
    finding = next((BY_CODE[code] for code in card["codes"] if code in BY_CODE), None)
    if card["missed"]:
        head = f"{truth} was not found"
        if card["suggested"] is not None and card["suggested"] != truth:
            head += f"; the boxes on it say {card['suggested']}"
    elif truth is None:
        head = f"{said}{sureness} where no box is labelled"
    elif truth == said:
        head = f"{said}{sureness}, {card['event']}" if card["wrong"] else f"Right: {said}{sureness}"
    else:
        head = f"{truth} said to be {said}{sureness}, {card['event']}"
    return f"{head}." if finding is None else f"{head}. {finding.title}."


def headline(
    errors: int, units: int, suspects: int, first: Mapping[str, Any] | None, *, boxes: bool, selected: bool
) -> str:
    """What a result says first.

    Args:
        errors: Units that are wrong.
        units: Units that are judged.
        suspects: Of all, those whose label looks wrong.
        first: The first thing to do (`title`, `n`), where there is one.
        boxes: Units are boxes.
        selected: Units are those of a filter.

    Example:
        >>> headline(215, 1797, 70, None, boxes=False, selected=False)
        '215 of 1,797 wrong; about 70 look like wrong labels: start here'
        >>> headline(0, 10, 0, None, boxes=False, selected=False)
        'All 10 right'
    """
    what = " boxes" if boxes else ""
    if not units:
        return "Nothing is selected" if selected else f"No labelled{what or ' samples'}"
    said = f"{errors:,} of {units:,}{what} wrong" if errors else f"All {units:,}{what} right"
    if suspects:
        looks = "looks like a wrong label" if suspects == 1 else "look like wrong labels"
        return f"{said}; about {suspects:,} {looks}: start here"
    if first is not None and first["n"]:
        return f"{said}; {first['n']:,}: {first['title'][:1].lower()}{first['title'][1:]}: start here"
    return said
