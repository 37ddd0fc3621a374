"""Issue categories: an exact partition of the units into six, from six booleans per unit.

Categories are not keyed on right and wrong alone: they say whether errors are dense where a unit lies,
whether risk is expressed or predicted there, and whether a monitor of the softmax confidence would have
noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CATEGORIES = (
    "stable_coverage",
    "operational_coverage",
    "hotspot",
    "recessive_hotspot",
    "critical_hotspot",
    "aleatoric_hotspot",
)
"""Names by number, in the order of the public summary."""

LEVEL = 0.05
DOUBT = 0.1
"""Error rate that a split must be able to rule out for any of its units to be called safe."""

STABLE, OPERATIONAL, HOTSPOT, RECESSIVE, CRITICAL, ALEATORIC = range(6)

MEANINGS = {
    "stable_coverage": "Right, confident, low risk and stable features: no data needed.",
    "operational_coverage": "Right and stable enough for operation.",
    "hotspot": "Errors are dense here, expressed or predicted: collect data.",
    "recessive_hotspot": "The evidence disagrees: an isolated error, or risk only predicted or only around.",
    "critical_hotspot": "Dense errors, wrong, and a confidence monitor would have passed it: collect first.",
    "aleatoric_hotspot": "Two labels tie here and errors are no more frequent than that: check labels.",
}

Flag = NDArray[np.bool_]


@dataclass(frozen=True)
class Flags:
    """The six booleans of every unit, (N,) each.

    Attributes:
        error: E, the unit is wrong.
        dense: H, r_lo > t2: errors are dense around it.
        predicted: P, p_lo > t2: its error probability is significantly above the threshold.
        covered: C, baseline risk <= t2: what a softmax monitor believes.
        ambiguous: A, in every layer two labels tie and the error rate is no higher than the tie explains.
        safe: S, error probability <= t1.
    """

    error: Flag
    dense: Flag
    predicted: Flag
    covered: Flag
    ambiguous: Flag
    safe: Flag


@dataclass(frozen=True)
class Thresholds:
    """What the categories of a split are decided by; stored with the result.

    Attributes:
        pi: (E + 1) / (n + 2) of the reference split.
        t2: min(pi, 1/2), or the user's `risk_tolerance`.
        t1: t2 where the reference units whose error probability is at most t2 hold what it says: the 95 %
            upper bound of their error rate is at most t2 or 10 %. Else 0, and no unit is safe. A threshold in
            the midst of the right units would set others of them aside on every half of the data.
        risk_tolerance: The user's value, or None.
        reference: Name of the reference split.
    """

    pi: float
    t2: float
    t1: float
    risk_tolerance: float | None
    reference: str


def thresholds(
    proba: NDArray[np.floating],
    errors: NDArray[np.integer],
    *,
    reference: str,
    risk_tolerance: float | None = None,
    weight: NDArray[np.floating] | None = None,
    pi: float | None = None,
) -> Thresholds:
    """Thresholds from the labelled units of the reference split.

    The first bound of t2 is the likelihood-ratio-1 cut of a calibrated score, the second the Bayes cut.

    Args:
        proba: (n,) error probabilities.
        errors: (n,) 1 wrong, 0 right.
        reference: Name of that split.
        risk_tolerance: Replaces t2.
        weight: (n,) weights of units that were sampled, as many together as they are worth; None = 1.
        pi: The error rate where it is known of more units than these; None = theirs.

    Raises:
        ValueError: `risk_tolerance` is not strictly between 0 and 1.

    Example:
        >>> made = thresholds(np.array([0.1, 0.1, 0.9, 0.2]), np.array([0, 0, 1, 0]), reference="val")
        >>> round(made.t2, 3), made.t1
        (0.333, 0.0)
    """
    from scipy.special import betaincinv

    if risk_tolerance is not None and not 0 < risk_tolerance < 1:
        raise ValueError(f"risk_tolerance={risk_tolerance}: expected a probability strictly between 0 and 1")
    wrong = errors == 1
    if pi is None:
        pi = float((wrong.sum() + 1) / (len(errors) + 2))
    t2 = min(pi, 0.5) if risk_tolerance is None else float(risk_tolerance)
    below = proba <= t2
    # A share of none wrong among few says little: what is called safe is so by an upper bound.
    mass: NDArray[np.floating] = np.ones(len(wrong)) if weight is None else weight
    bound = float(betaincinv(mass[below & wrong].sum() + 0.5, mass[below & ~wrong].sum() + 0.5, 1 - LEVEL))
    t1 = t2 if bound <= max(t2, DOUBT) else 0.0
    return Thresholds(pi, t2, t1, risk_tolerance, reference)


def categorise(flags: Flags) -> NDArray[np.int8]:
    """(N,) category numbers; the first rule that holds wins.

    Example:
        >>> t, f = np.array([True]), np.array([False])
        >>> CATEGORIES[categorise(Flags(t, t, f, t, f, f))[0]]
        'critical_hotspot'
    """
    return np.asarray(np.where(overlay(flags), ALEATORIC, five_way(flags)), dtype=np.int8)


def overlay(flags: Flags) -> Flag:
    """(N,) ambiguous units with any sign of risk: the aleatoric overlay."""
    return flags.ambiguous & (flags.error | flags.predicted | flags.dense)


def five_way(flags: Flags) -> NDArray[np.int8]:
    """(N,) category numbers without the aleatoric rule."""
    e, h, p = flags.error, flags.dense, flags.predicted
    rules = [h & e & flags.covered, h & (p | e), h | p | e, flags.safe & flags.covered]
    return np.select(rules, [CRITICAL, HOTSPOT, RECESSIVE, STABLE], default=OPERATIONAL).astype(np.int8)


def category_ratios(flags: Flags, proba: NDArray[np.floating]) -> dict[str, float | None]:
    """Shares of the units in each category, under the names of the public summary and of its full form.

    `<category>_ratio` sum to exactly 1 (as counts over the number of units); `aleatoric_overlay_ratio` and
    `five_way_<category>_ratio` are the overlapping reading; `expected_risk_coverage` is the mean error
    probability in the two coverage categories, which hold no observed error by definition.
    """
    rows = len(proba)
    six, five = categorise(flags), five_way(flags)
    made: dict[str, float | None] = {}
    for number, name in enumerate(CATEGORIES):
        made[f"{name}_ratio"] = float((six == number).sum() / rows) if rows else None
    made["aleatoric_overlay_ratio"] = float(overlay(flags).sum() / rows) if rows else None
    for number, name in enumerate(CATEGORIES[:ALEATORIC]):
        made[f"five_way_{name}_ratio"] = float((five == number).sum() / rows) if rows else None
    inside = six <= OPERATIONAL
    made["expected_risk_coverage"] = float(proba[inside].mean()) if inside.any() else None
    return made


def projected(flags: Flags) -> NDArray[np.int8]:
    """(N,) category numbers as if no error were known: E = 0, the rest as given."""
    none = np.zeros(len(flags.error), np.bool_)
    return categorise(Flags(none, flags.dense, flags.predicted, flags.covered, flags.ambiguous, flags.safe))
