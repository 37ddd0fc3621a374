"""A diagnosis, and what a task's registry of them finds in its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
E = TypeVar("E", bound="Evidence")


class Evidence(Protocol):
    """What the predicates of a task read."""

    @property
    def rows(self) -> int:
        """Number of units a predicate answers for."""
        ...

    @property
    def missing(self) -> Mapping[str, str]:
        """Names of needs that are not there, and why in words."""
        ...


@dataclass(frozen=True)
class Diagnosis(Generic[E]):
    """One diagnosis; a task's registry is a tuple of them in the order of their codes.

    Attributes:
        code: C01 to C91, D01 to D25, T01 to T23.
        title: Short name.
        severity: 1 information to 5 blocking.
        action: What to do.
        when: When it applies, in words.
        predicate: When it applies: from the task's evidence to a (rows,) mask. None where no evidence of one
            split can say (a comparison of two does).
        needs: What must be recorded for it: names out of `Evidence.missing`.
    """

    code: str
    title: str
    severity: int
    action: str
    when: str
    predicate: Callable[[E], Mask] | None = None
    needs: tuple[str, ...] = ()


def diagnosis(
    code: str, title: str, severity: int, action: str, *needs: str, when: str = ""
) -> Callable[[Callable[[E], Mask]], Diagnosis[E]]:
    """Make a predicate a diagnosis; its docstring says when it applies, where `when` does not.

    Example:
        >>> @diagnosis("C00", "Wrong", 1, "Look.")
        ... def wrong(e):
        ...     \"\"\"The prediction differs.\"\"\"
        ...     return e.wrong
        >>> wrong.when
        'the prediction differs'
    """

    def made(predicate: Callable[[E], Mask]) -> Diagnosis[E]:
        said = when or " ".join((predicate.__doc__ or title).split()).removesuffix(".")
        if said[1:2].islower():
            said = said[0].lower() + said[1:]
        return Diagnosis(code, title, severity, action, said, predicate, needs)

    return made


@dataclass(frozen=True)
class Diagnoses:
    """What applies to which unit.

    Attributes:
        registry: The diagnoses that were looked for.
        masks: Code -> (N,) bool, for every code that could be computed.
        not_computable: Code -> why, for every other code.
        primary: (N,) number of the primary code in `registry`, -1 where none applies.
        severity: (N,) int8 severity of the primary code, 0 where none applies.
        counts: Code -> how many units.
    """

    registry: Sequence[Diagnosis[Any]]
    masks: Mapping[str, Mask]
    not_computable: Mapping[str, str]
    primary: NDArray[np.int8]
    severity: NDArray[np.int8]
    counts: Mapping[str, int] = field(default_factory=dict)

    def codes_of(self, row: int) -> list[str]:
        """Codes of one unit, primary first."""
        there = [one.code for one in gravest_first(self.registry) if one.code in self.masks]
        return [code for code in there if self.masks[code][row]]


def diagnose(registry: Sequence[Diagnosis[E]], evidence: E) -> Diagnoses:
    """Ask every predicate; a code that needs something not recorded says so, instead of being absent."""
    missing = evidence.missing
    masks: dict[str, Mask] = {}
    reasons: dict[str, str] = {}
    for one in registry:
        absent = [missing[need] for need in one.needs if need in missing]
        if absent or one.predicate is None:
            reasons[one.code] = "not computable: " + "; ".join(absent)
        else:
            masks[one.code] = one.predicate(evidence)
    return ranked(registry, masks, reasons, evidence.rows)


def ranked(
    registry: Sequence[Diagnosis[Any]], masks: Mapping[str, Mask], reasons: Mapping[str, str], rows: int
) -> Diagnoses:
    """Primary code and severity of every unit from the masks of the codes."""
    primary, severity = np.full(rows, -1, np.int8), np.zeros(rows, np.int8)
    place = {one.code: number for number, one in enumerate(registry)}
    for one in reversed(gravest_first(registry)):
        if one.code in masks:
            primary[masks[one.code]] = place[one.code]
            severity[masks[one.code]] = one.severity
    counts = {code: int(mask.sum()) for code, mask in masks.items()}
    return Diagnoses(registry, masks, reasons, primary, severity, counts)


def gravest_first(registry: Iterable[Diagnosis[E]]) -> list[Diagnosis[E]]:
    """By falling severity, then as they stand; of the codes of a unit the first is the primary one.

    Example:
        >>> kinds = [Diagnosis("C02", "b", 2, "", ""), Diagnosis("C20", "a", 5, "", "")]
        >>> [one.code for one in gravest_first(kinds)]
        ['C20', 'C02']
    """
    return sorted(registry, key=lambda one: -one.severity)


def markdown_table(registry: Iterable[Diagnosis[Any]]) -> list[str]:
    """The lines of the registry's table in the documentation, without its heading."""
    return [
        f"| {one.code} | **{one.title}**: {one.when} | {one.severity} | {one.action} |" for one in registry
    ]
