"""The catalogue of diagnoses, code suffixes, slices and regions."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mld_core.evaluation.analysis.evidence import NEEDS, CellEvidence, Evidence
from mld_core.evaluation.classification.diagnoses import DIAGNOSES, significant_pairs
from mld_core.evaluation.codes import diagnosis
from mld_core.evaluation.codes.categories import ALEATORIC, CRITICAL, HOTSPOT, RECESSIVE, Flags
from mld_core.evaluation.codes.notation import parse_classification_code, suffixed_codes
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.arrays import EpochArrays
from mld_core.evaluation.space.cells import Ambiguity
from mld_core.evaluation.space.layers import close_classes
from mld_core.evaluation.space.regions import (
    CellGrid,
    cut_cells,
    describe_regions,
    merge_cells,
    region_numbers,
)
from mld_core.evaluation.space.slices import find_slices
from mld_core.evaluation.statistics.significance import (
    benjamini_hochberg,
    binomial_lower,
    binomial_upper,
    two_proportions_upper,
)


def diagnose(evidence):
    return diagnosis.diagnose(DIAGNOSES, evidence)


def ambiguity(n, **changes):
    """One label throughout, no tie and nothing rejected; a test changes what it is about."""
    none, no = np.zeros(n, np.float32), np.zeros(n, bool)
    plain = Ambiguity(np.full(n, 32), none, none, none, no, no, np.zeros(n, np.int64), ~no)
    return replace(plain, **changes)


def make_evidence(n=8, **changes):
    """Right, confident, unremarkable units; a test changes what it is about."""
    no = np.zeros(n, bool)
    plain = ambiguity(n, rejected=~no)
    made = Evidence(
        labels=np.zeros(n, np.int64),
        prediction=np.zeros(n, np.int64),
        runner_up=np.ones(n, np.int64),
        errors=np.zeros(n, np.int8),
        msp=np.full(n, 0.9),
        error_proba=np.full(n, 0.05),
        baseline_risk=np.full(n, 0.05),
        flags=Flags(no, no, no, ~no, no, ~no),
        category=np.zeros(n, np.int8),
        t1=0.05,
        t2=0.1,
        suspected=no,
        neighbours=plain,
        layers=(plain, plain),
        cells=CellEvidence(np.zeros(n, np.int32), 1),
    )
    return replace(made, **changes)


def flags(n=8, **on):
    made = {
        name: np.zeros(n, bool) for name in ("error", "dense", "predicted", "covered", "ambiguous", "safe")
    }
    for name, rows in on.items():
        made[name][rows] = True
    return Flags(**made)


def wrong_at(*rows, n=8):
    errors = np.zeros(n, np.int8)
    errors[list(rows)] = 1
    return errors


def rows_of(found, code):
    return np.flatnonzero(found.masks[code]).tolist()


def test_catalogue_is_whole():
    wanted = [
        "C01",
        "C02",
        "C03",
        "C04",
        "C05",
        "C10",
        "C11",
        "C12",
        "C13",
        "C20",
        "C21",
        "C22",
        "C23",
        "C30",
        "C31",
        "C32",
        "C33",
        "C40",
        "C41",
        "C42",
        "C50",
        "C90",
        "C91",
    ]
    assert [entry.code for entry in DIAGNOSES] == wanted
    assert all(1 <= entry.severity <= 5 and entry.action and entry.when for entry in DIAGNOSES)
    assert all(need in NEEDS for entry in DIAGNOSES for need in entry.needs)
    assert all((entry.predicate is None) == ("comparison" in entry.needs) for entry in DIAGNOSES)
    assert {code: BY_CODE[code].severity for code in ("C04", "C20", "C01", "C23")} == {
        "C04": 5,
        "C20": 5,
        "C01": 4,
        "C23": 1,
    }


def test_what_is_not_recorded_says_so():
    found = diagnose(make_evidence())
    assert "input hashes" in found.not_computable["C03"]
    assert "train split" in found.not_computable["C30"]
    assert "epochs" in found.not_computable["C40"]
    assert "metadata" in found.not_computable["C32"]
    assert "comparison" in found.not_computable["C90"]
    assert set(found.masks) | set(found.not_computable) == {entry.code for entry in DIAGNOSES}
    assert not set(found.masks) & set(found.not_computable)
    train = diagnose(make_evidence(is_train=True))
    assert "other than train" in train.not_computable["C04"]


def test_primary_is_the_worst_then_the_lowest_number():
    suspected = np.zeros(8, bool)
    suspected[0] = True
    e = make_evidence(
        errors=wrong_at(0, 1),
        suspected=suspected,
        flags=flags(covered=slice(None)),
        category=np.array([CRITICAL, 0, 0, 0, 0, 0, 0, 0], np.int8),
    )
    found = diagnose(e)
    assert found.codes_of(0)[:2] == ["C20", "C01"]
    assert DIAGNOSES[found.primary[0]].code == "C20"
    assert found.severity[:3].tolist() == [5, 3, 0]
    assert found.primary[2] == -1


def test_duplicates_and_leakage_by_hash():
    e = make_evidence(
        labels=np.array([0, 1, 2, 2, 3, -1, 0, 0]),
        hashes=np.array(list("aabbccde")),
        train_hashes=np.array(["d", "z"]),
        novel=np.zeros(8, bool),
        cells=CellEvidence(np.zeros(8, np.int32), 1, np.zeros(4, np.int32)),
    )
    found = diagnose(e)
    assert rows_of(found, "C03") == [0, 1]
    assert rows_of(found, "C04") == [6]


def test_isolated_errors_boundary_and_head():
    first = np.array([0, 0, 5, 0, 0, 0, 0, 0])
    rejected = np.array([True, False, True, True, True, True, True, True])
    near = ambiguity(8, rejected=rejected, first=first)
    e = make_evidence(
        errors=wrong_at(0, 1, 2, 3),
        prediction=np.array([1, 1, 1, 2, 0, 0, 0, 0]),
        runner_up=np.array([0, 2, 2, 0, 1, 1, 1, 1]),
        flags=flags(covered=[0, 3, 4], dense=[3]),
        neighbours=near,
        baseline_risk=np.array([0.5] * 8),
        error_proba=np.array([0.5, 0.5, 0.5, 0.5, 0.01, 0.5, 0.5, 0.5]),
    )
    found = diagnose(e)
    assert rows_of(found, "C11") == [0, 3]
    assert rows_of(found, "C21") == [0]
    assert rows_of(found, "C22") == [0]
    assert rows_of(found, "C23") == [4]


def test_collapse_against_uninformative_input():
    no = np.zeros(8, bool)
    has, lacks = ~no, no
    early = ambiguity(8, majority=np.where(np.arange(8) < 4, has, lacks))
    late = ambiguity(8, majority=lacks)
    e = make_evidence(layers=(early, late), flags=flags(dense=[0, 1, 6]))
    found = diagnose(e)
    assert rows_of(found, "C12") == [0, 1]
    assert rows_of(found, "C13") == [6]
    single = diagnose(make_evidence(layers=(late,), flags=flags(dense=[0])))
    assert "one layer" in single.not_computable["C12"]


def test_systematic_confusion_needs_an_excess_over_the_margins():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 600)
    prediction = (labels + rng.integers(1, 6, 600)) % 6
    assert significant_pairs(labels, prediction) == set()
    prediction[labels == 2] = 5
    assert significant_pairs(labels, prediction) == {(2, 5)}
    # Two classes: an error has nowhere else to go.
    assert significant_pairs(np.array([0] * 50 + [1] * 9), np.array([1] * 50 + [0] * 9)) == set()


def test_novel_and_cells():
    n = 400
    cell = (np.arange(n) >= 300).astype(np.int32)
    errors = np.where(np.arange(n) % 2 == 0, cell, 0).astype(np.int8)
    plain = make_evidence(n)
    e = replace(
        plain,
        errors=errors,
        novel=np.arange(n) < 5,
        cells=CellEvidence(cell, 2, np.zeros(1_000, np.int32), np.zeros(1_000, np.int8)),
    )
    found = diagnose(e)
    assert rows_of(found, "C30") == list(range(5))
    assert rows_of(found, "C31") == list(range(300, n))
    assert "C33" in found.masks
    # Cell 1: half wrong at a confidence of 0.9. Cell 0: never wrong, which 0.9 does not say either.
    assert found.masks["C50"][300:].all()


def test_generalisation_gap():
    n = 400
    cell = (np.arange(n) >= 200).astype(np.int32)
    errors = ((np.arange(n) >= 200) & (np.arange(n) % 3 == 0)).astype(np.int8)
    train_cell = np.repeat([0, 1], 500).astype(np.int32)
    e = replace(
        make_evidence(n),
        errors=errors,
        novel=np.zeros(n, bool),
        cells=CellEvidence(cell, 2, train_cell, np.zeros(1_000, np.int8)),
    )
    assert rows_of(diagnose(e), "C33") == list(range(200, n))


def test_codes_of_other_epochs():
    predictions = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    e = make_evidence(
        4, errors=wrong_at(0, 1, 2, n=4), prediction=predictions[-1], labels=np.zeros(4, np.int64)
    )
    e = replace(e, epochs=EpochArrays(predictions, np.ones((3, 4))))
    found = diagnose(e)
    assert rows_of(found, "C40") == [0, 2]
    assert "train split only" in found.not_computable["C41"]
    assert rows_of(found, "C42") == [2] or rows_of(found, "C42") == [0, 2]
    train = diagnose(replace(e, is_train=True))
    assert rows_of(train, "C41") == [1]


def test_suffixes_read_back():
    close = close_classes(np.array([[10, 12, 2, 8], [32, 0, 0, 0]]))
    assert close.tolist() == [[1, 0, 3, -1], [0, -1, -1, -1]]
    category = np.array([HOTSPOT, HOTSPOT, CRITICAL, ALEATORIC, RECESSIVE, -1], np.int8)
    labels = np.array([0, 0, 0, 0, 0, -1])
    prediction = np.array([1, -1, 1, 0, 1, 1])
    six = np.concatenate([close[:1]] * 6)
    codes = suffixed_codes(category, labels, prediction, six, np.zeros(6, np.int64)).tolist()
    assert codes == ["CLS0->1|0|3", "CLS0->nonfinite|1|0|3", "CLS0->1**", "CLS0->0", "CLS0->1", None]
    assert parse_classification_code(codes[0]) == (0, 1)


def test_metadata_slices_find_the_planted_one():
    rng = np.random.default_rng(1)
    n = 3_000
    frame = pd.DataFrame(
        {
            "weather": rng.choice(["sun", "rain", "fog"], n),
            "site": rng.choice(["a", "b", "c", "d"], n),
            "speed": rng.random(n) * 100,
            "id": [f"x{i}" for i in range(n)],
        }
    )
    bad = (frame.weather == "fog") & (frame.site == "c")
    errors = (rng.random(n) < np.where(bad, 0.8, 0.05)).astype(np.int8)
    found = find_slices(frame, errors)
    planted = next(one for one in found if one.conditions == {"site": "c", "weather": "fog"})
    assert planted.significant
    assert planted.size == bad.sum()
    assert planted.errors == errors[bad].sum()
    assert found[0].score >= planted.score
    assert all("id" not in one.conditions for one in found)
    shuffled = find_slices(frame, rng.permutation(errors))
    assert not any(one.significant for one in shuffled)
    assert find_slices(frame, np.zeros(n, np.int8)) == []


def test_regions_have_size_rate_and_a_name():
    rng = np.random.default_rng(2)
    n = 3_000
    points = rng.normal(size=(n, 3)).astype(np.float32)
    inside = rng.random(n) < 0.1
    points[inside] += 8
    labels = rng.integers(0, 3, n)
    errors = (rng.random(n) < np.where(inside, 0.9, 0.03)).astype(np.int8)
    prediction = np.where(errors == 1, 2, labels)
    labels[(errors == 1) & (labels == 2)] = 1
    frame = pd.DataFrame({"sensor": np.where(inside, "left", "right")})
    with Workers(2) as workers:
        grid = cut_cells(points, workers)
    near = np.stack([rng.permutation(np.flatnonzero(inside == inside[row]))[:8] for row in range(n)])
    region = region_numbers(grid, near, errors, 0.12)
    table = describe_regions(
        points, region, labels, prediction, errors, metadata=frame, masks={"C10": errors == 1}
    )
    assert (region[inside] == 0).mean() > 0.95
    assert (region[~inside] == -1).mean() > 0.95
    assert table[0].bh_sig
    assert table[0].rate > 0.8
    assert table[0].label.endswith("@ sensor=left")
    assert table[0].label[1:4] == "->2"
    assert inside[table[0].medoid]
    assert table[0].top_codes == ["C10"]


def test_cells_of_two_levels_are_small_and_other_points_find_theirs():
    points = np.random.default_rng(5).normal(size=(270_000, 2)).astype(np.float32)
    with Workers(2) as workers:
        grid = cut_cells(points, workers)
        assert (grid.cells_of(points[:5_000], workers) == grid.cell[:5_000]).all()
    assert grid.levels is not None
    gap = ((points[:5_000, None] - grid.centroids[None]) ** 2).sum(axis=2)
    own = np.take_along_axis(gap, grid.cell[:5_000, None].astype(np.int64), axis=1)[:, 0]
    assert (own == gap.min(axis=1)).mean() > 0.9  # a few lie at the edge of a coarse cell
    assert np.bincount(grid.cell, minlength=len(grid.centroids)).max() < 20 * 256


def test_no_error_no_region():
    points = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    grid = CellGrid(np.zeros(200, np.int32), np.zeros((1, 2), np.float32))
    labels = np.zeros(200, np.int64)
    region = region_numbers(grid, np.full((200, 8), -1), np.zeros(200, np.int8), 0.1)
    assert describe_regions(points, region, labels, labels, np.zeros(200, np.int8)) == []
    assert (region == -1).all()


def test_merging_follows_edges_between_dense_cells_only():
    cell = np.repeat([0, 1, 2], 10).astype(np.int32)
    near = np.tile(np.array([[0, 10]]), (30, 1))
    component = merge_cells(cell, np.array([True, True, False]), near)
    assert component.tolist() == [0, 0, -1]
    assert merge_cells(cell, np.array([True, True, True]), np.arange(30)[:, None]).tolist() == [0, 1, 2]


def test_benjamini_hochberg_by_hand():
    p = np.array([0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, np.nan])
    assert benjamini_hochberg(p).tolist() == [True, True] + [False] * 7
    assert not benjamini_hochberg(np.array([])).any()


@pytest.mark.parametrize(("k", "n", "p"), [(0, 10, 0.3), (4, 10, 0.3), (10, 10, 0.3)])
def test_tails_equal_scipy(k, n, p):
    one, many = np.array([float(k)]), np.array([float(n)])
    assert binomial_upper(one, many, p)[0] == pytest.approx(stats.binom.sf(k - 1, n, p))
    assert binomial_lower(one, many, p)[0] == pytest.approx(stats.binom.cdf(k, n, p))


def test_two_proportions():
    high = two_proportions_upper(np.array([60.0]), np.array([100.0]), np.array([40.0]), np.array([100.0]))
    assert high[0] == pytest.approx(stats.norm.sf(0.2 / np.sqrt(0.25 * 2 / 100)))
    assert two_proportions_upper(np.array([0.0]), np.array([0.0]), np.array([1.0]), np.array([2.0]))[0] == 1
