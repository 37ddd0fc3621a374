"""The partition into categories: its whole truth table, thresholds and ratios."""

from itertools import product

import numpy as np
import pytest

from mld_core.evaluation.codes.categories import (
    CATEGORIES,
    Flags,
    categorise,
    category_ratios,
    five_way,
    overlay,
    projected,
    thresholds,
)

ROWS = list(product([False, True], repeat=6))
"""(E, H, P, C, A, S) in binary order."""


def written_out(e, h, p, c, a, s):
    """The specification, rule by rule."""
    if a and (e or p or h):
        return "aleatoric_hotspot"
    if h and e and c:
        return "critical_hotspot"
    if h and (p or e):
        return "hotspot"
    if h or p or e:
        return "recessive_hotspot"
    if s and c:
        return "stable_coverage"
    return "operational_coverage"


FROZEN = (
    # P=0: C,A,S = 000 001 010 011 100 101 110 111; then P=1; four blocks: E,H = 00, 01, 10, 11
    "OOOOOSOS RRAARRAA RRAARRAA HHAAHHAA RRAARRAA RRAARRAA HHAACCAA HHAACCAA"
).replace(" ", "")
LETTER = dict(zip("SOHRCA", CATEGORIES, strict=True))


def flags_of(rows):
    return Flags(*(np.array(column) for column in zip(*rows, strict=True)))


def test_truth_table_of_all_64_rows():
    made = categorise(flags_of(ROWS))
    assert len(FROZEN) == len(ROWS) == 64
    for row, number, letter in zip(ROWS, made, FROZEN, strict=True):
        assert CATEGORIES[number] == LETTER[letter] == written_out(*row), row


def test_five_way_is_the_table_without_the_aleatoric_rule():
    made = five_way(flags_of(ROWS))
    for (e, h, p, c, _, s), number in zip(ROWS, made, strict=True):
        assert CATEGORIES[number] == written_out(e, h, p, c, False, s)


def test_ratios_sum_to_one_and_show_the_overlay():
    rng = np.random.default_rng(0)
    flags = Flags(*(rng.random(997) < 0.4 for _ in range(6)))
    ratios = category_ratios(flags, rng.random(997))
    six = [ratios[f"{name}_ratio"] for name in CATEGORIES]
    five = [ratios[f"five_way_{name}_ratio"] for name in CATEGORIES[:5]]
    assert sum(six) == pytest.approx(1, abs=1e-12)
    assert sum(five) == pytest.approx(1, abs=1e-12)
    assert ratios["aleatoric_overlay_ratio"] == overlay(flags).mean() == ratios["aleatoric_hotspot_ratio"]


def test_coverage_holds_no_error():
    made = categorise(flags_of(ROWS))
    inside = np.isin(made, [0, 1])
    assert not any(e for (e, *_), covered in zip(ROWS, inside, strict=True) if covered)


def test_projection_ignores_the_error():
    made = projected(flags_of(ROWS))
    for (_, h, p, c, a, s), number in zip(ROWS, made, strict=True):
        assert CATEGORIES[number] == written_out(False, h, p, c, a, s)


def test_thresholds_frozen():
    proba = np.array([0.05, 0.1, 0.2, 0.6, 0.9, 0.95])
    errors = np.array([0, 0, 1, 0, 1, 1], np.int8)
    made = thresholds(proba, errors, reference="val")
    assert made.pi == pytest.approx(4 / 8)
    assert made.t2 == 0.5
    # One wrong of three: their error rate may well be above t2, and no unit is called safe.
    assert made.t1 == 0


def test_t1_is_t2_where_there_are_units_enough_to_say_so():
    right = thresholds(np.full(600, 1 / 602), np.zeros(600, np.int8), reference="test")
    assert right.t1 == right.t2 == right.pi == 1 / 602
    proba, errors = np.repeat([0.01, 0.9], [2_000, 200]), np.repeat([0, 1], [1_990, 210]).astype(np.int8)
    many = thresholds(proba, errors, reference="test")
    assert many.t1 == many.t2
    assert thresholds(np.full(5, 1 / 7), np.zeros(5, np.int8), reference="test").t1 == 0


def test_the_bayes_cut_holds_for_broken_models():
    made = thresholds(np.full(10, 0.9), np.ones(10, np.int8), reference="test")
    assert made.pi > 0.9
    assert made.t2 == 0.5
    assert made.t1 == 0


def test_risk_tolerance_replaces_t2():
    proba, errors = np.array([0.05, 0.3]), np.array([0, 1], np.int8)
    made = thresholds(proba, errors, reference="test", risk_tolerance=0.1)
    assert (made.t2, made.t1, made.risk_tolerance) == (0.1, 0.0, 0.1)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        thresholds(proba, errors, reference="test", risk_tolerance=1.0)


def test_no_unit_has_no_ratio():
    none = np.zeros(0, bool)
    assert category_ratios(Flags(*[none] * 6), np.zeros(0))["hotspot_ratio"] is None
