"""A diagnosis, and what a task's registry of them finds in its evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

GRAVE = 4
"""Severity from which a code must be sure to repeat on other data."""

UNSURE = 3
"""Severity of a grave code where it is not."""

SURE = 0.9
STABLE = 0.75

LOOK_FIRST = "Look at it before you act: on half of the data it might not be found."
"""Advice for a grave code where it is not."""
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
        varies: Whether another draw of the same data may say otherwise: asked again of halves of it.
    """

    code: str
    title: str
    severity: int
    action: str
    when: str
    predicate: Callable[[E], Mask] | None = None
    needs: tuple[str, ...] = ()
    varies: bool = False


def diagnosis(
    code: str, title: str, severity: int, action: str, *needs: str, when: str = "", varies: bool = False
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
        return Diagnosis(code, title, severity, action, said, predicate, needs, varies)

    return made


@dataclass(frozen=True)
class Diagnoses:
    """What applies to which unit.

    Attributes:
        registry: The diagnoses that were looked for.
        masks: Code -> (N,) bool, for every code that could be computed.
        not_computable: Code -> why, for every other code.
        primary: (N,) number of the primary code in `registry`, -1 where none applies.
        severity: (N,) int8 severity of the primary code, 0 where none applies; of a grave code that need not
            repeat on other data it is 3.
        counts: Code -> how many units.
        sure: Code -> how many of them carry it with the severity that it has.
        membership: (N,) float32 share of the halves of the data in which the unit carries its primary code;
            NaN where that was not asked.
    """

    registry: Sequence[Diagnosis[Any]]
    masks: Mapping[str, Mask]
    not_computable: Mapping[str, str]
    primary: NDArray[np.int8]
    severity: NDArray[np.int8]
    counts: Mapping[str, int] = field(default_factory=dict)
    sure: Mapping[str, int] = field(default_factory=dict)
    membership: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def codes_of(self, row: int) -> list[str]:
        """Codes of one unit, primary first."""
        there = [one.code for one in gravest_first(self.registry) if one.code in self.masks]
        return [code for code in there if self.masks[code][row]]


@dataclass(frozen=True)
class Repeated:
    """How often a code comes out again: (N,) share of the halves, and whether its severity may stand."""

    share: NDArray[np.float32]
    sure: Mask


def diagnose(
    registry: Sequence[Diagnosis[E]],
    evidence: E,
    halves: Sequence[E] = (),
    region: NDArray[np.integer] | None = None,
) -> Diagnoses:
    """Ask every predicate; a code that needs something not recorded says so, instead of being absent.

    Args:
        registry: The task's diagnoses.
        evidence: Of all units.
        halves: The same evidence as halves of the data have it: grave codes that vary are asked again.
        region: (N,) region of each unit, -1 outside; a code's units of one region come and go together.
    """
    missing = evidence.missing
    masks: dict[str, Mask] = {}
    reasons: dict[str, str] = {}
    known: dict[str, Repeated] = {}
    for one in registry:
        absent = [missing[need] for need in one.needs if need in missing]
        if absent or one.predicate is None:
            reasons[one.code] = "not computable: " + "; ".join(dict.fromkeys(absent))
            continue
        masks[one.code] = one.predicate(evidence)
        if one.varies and one.severity >= GRAVE and halves and masks[one.code].any():
            again = np.stack([one.predicate(half) for half in halves])
            known[one.code] = repeats(again, np.zeros(evidence.rows, int) if region is None else region)
    return ranked(registry, masks, reasons, evidence.rows, known)


def repeats(again: Mask, region: NDArray[np.integer]) -> Repeated:
    """Which units carry a code for sure.

    A unit must do so in nine of ten halves, and the code's units of its region must be much the same ones
    from half to half: a mean Jaccard index of 0.75 with those of most halves, as clusters are called stable
    (Hennig, 2007). A crowd at the edge of a threshold is another crowd on other data.

    Args:
        again: (halves, N) who carries it in which half.
        region: (N,) region of each unit, -1 outside.
    """
    place = np.asarray(region, np.int64) + 1
    return repeated(again, place, stable_places(again, place, int(place.max(initial=0)) + 1))


def repeated(again: Mask, place: NDArray[np.int64], stable: Mask) -> Repeated:
    """Which units carry a code for sure, where it is known at which places it is stable."""
    share = again.mean(axis=0)
    return Repeated(share.astype(np.float32), (share >= SURE) & stable[place])


def stable_places(again: Mask, place: NDArray[np.int64], count: int) -> Mask:
    """(count,) places at which the units that carry a code are much the same ones from half to half."""
    most = again.mean(axis=0) >= 0.5
    jaccard = np.zeros(count)
    for one in again:
        both = np.bincount(place[one & most], minlength=count)
        either = np.bincount(place[one | most], minlength=count)
        jaccard += np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return np.asarray(jaccard / len(again) >= STABLE)


def ranked(
    registry: Sequence[Diagnosis[Any]],
    masks: Mapping[str, Mask],
    reasons: Mapping[str, str],
    rows: int,
    repeated: Mapping[str, Repeated] | None = None,
) -> Diagnoses:
    """Primary code and severity of every unit from the masks of the codes."""
    primary, severity = np.full(rows, -1, np.int8), np.zeros(rows, np.int8)
    membership = np.full(rows, np.nan, np.float32)
    place = {one.code: number for number, one in enumerate(registry)}
    counts = {code: int(mask.sum()) for code, mask in masks.items()}
    sure = dict(counts)
    known = repeated or {}
    for one in reversed(gravest_first(registry)):
        if one.code not in masks:
            continue
        mask = masks[one.code]
        own = np.full(rows, one.severity, np.int8)
        if one.code in known:
            own[~known[one.code].sure] = UNSURE
            sure[one.code] = int((mask & known[one.code].sure).sum())
        leads = mask & (own >= severity)
        primary[leads], severity[leads] = place[one.code], own[leads]
        membership[leads] = known[one.code].share[leads] if one.code in known else np.nan
    return Diagnoses(registry, masks, reasons, primary, severity, counts, sure, membership)


def shown(one: Diagnosis[Any], sure: bool) -> tuple[int, str]:
    """Severity and advice to show for a code: its own, or only to look where it need not repeat.

    Example:
        >>> shown(Diagnosis("C20", "Silent failure", 5, "Block the release.", ""), sure=False)
        (3, 'Look at it before you act: on half of the data it might not be found.')
    """
    return (one.severity, one.action) if sure or one.severity < GRAVE else (UNSURE, LOOK_FIRST)


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
