"""Slices of both kinds: clusters of their own and parts of a cluster, at least the better way's share of each."""

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.directions import failing_direction
from mld_core.evaluation.space.merged import merged_regions, ranked_regions
from mld_core.evaluation.space.mixture import SMALLEST, failing_components, fit_mixture, score_mixture
from mld_core.evaluation.space.neighbourhood import surroundings
from mld_core.evaluation.space.regions import cut_cells, region_numbers
from mld_core.evaluation.statistics.folds import key_hashes

FILE = Path(__file__).parents[1] / "analysis" / "strangers.py"
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "table"):
    spec.loader.exec_module(strangers)

KINDS = ("cluster", "direction", "class", "part of a class", "norm")


recorded = functools.cache(strangers.recorded)
"""The model of a set is trained once; what is planted is planted into copies."""


def planted(name, kind, seed=0):
    """Hidden features, labels, predictions that fail in one slice, who is in it, and the number of classes."""
    arrays, _ = recorded(name, seed)
    rng = np.random.default_rng(seed)
    x, y, said = arrays.features["hidden"].copy(), arrays.labels, arrays.logits.argmax(axis=1)
    along, common = x @ rng.normal(size=x.shape[1]), int(np.bincount(y).argmax())
    if kind == "cluster":
        hit = rng.random(len(y)) < 0.06
        x[hit] += x.std() * 2 * rng.normal(size=x.shape[1])
    elif kind == "direction":
        hit = along > np.quantile(along, 0.94)
    elif kind == "class":
        hit = (y == common) & (rng.random(len(y)) < 0.6)
    elif kind == "part of a class":
        hit = (y == common) & (along > np.median(along[y == common]))
    else:
        hit = np.abs(x).sum(axis=1) > np.quantile(np.abs(x).sum(axis=1), 0.93)
    wrong = hit & (rng.random(len(y)) < 0.75)
    said[wrong] = (y[wrong] + 1) % arrays.n_class
    return x.astype(np.float32), y, said, hit, arrays.n_class


def found(x, y, said, n_class, errors):
    with Workers(1) as workers:
        fitted = space.fit_space({"a": x}, workers)
        points = space.project(fitted, {"a": x}, workers)
        around = surroundings(points, np.arange(len(y)), np.arange(len(y)), workers).around
        t2 = (errors.sum() + 1) / (len(y) + 2)
        near = around.index[:, :8].astype(np.int64)
        cells = region_numbers(cut_cells(points, workers), near, errors, t2)
        hashes = key_hashes(np.arange(len(y)), "0")
        parts = failing_components(points, y, said, errors, hashes, t2, n_class, workers)
        end = failing_direction(points, errors, hashes, t2)
    return cells, parts, merged_regions([cells, parts, end], errors, parts=1), end


def best_f1(numbers, hit):
    def f1(mask):
        return 2 * (mask & hit).sum() / (mask.sum() + hit.sum())

    return max((f1(numbers == one) for one in np.unique(numbers[numbers >= 0])), default=0.0)


def test_both_together_are_as_good_as_the_better_of_the_two():
    better, gained = 0, 0
    for name in ("digits", "mixture", "snippets"):
        for kind in KINDS:
            x, y, said, hit, n_class = planted(name, kind)
            ways = [best_f1(one, hit) for one in found(x, y, said, n_class, (said != y).astype(np.int8))]
            better += ways[2] >= max(ways[:2]) - 0.02
            gained += ways[2] > ways[0] + 0.1
    assert better >= 14
    assert gained >= 5


@pytest.mark.parametrize("name", ["cancer", "wine"])
def test_a_small_split_has_fewer_components_instead_of_none(name):
    """285 and 89 units: no half of them fills twenty components of ten."""
    ways = []
    for seed in range(5):
        x, y, said, hit, n_class = planted(name, "part of a class", seed)
        cells, _, both, _ = found(x, y, said, n_class, (said != y).astype(np.int8))
        ways.append((best_f1(cells, hit), best_f1(both, hit)))
    alone, together = np.mean(ways, axis=0)
    assert together > alone + 0.03


@pytest.mark.parametrize(
    ("name", "kind", "gain"),
    [
        ("rings", "norm", 0.05),
        *(
            pytest.param(name, kind, gain, marks=pytest.mark.heavy)
            for name, kind, gain in (
                ("hastie", "direction", 0.05),
                ("rings", "direction", 0.03),
                ("mixture", "norm", 0.2),
                ("hastie", "cluster", -0.01),
                ("shells", "part of a class", -0.01),
            )
        ),
    ],
)
def test_regions_gain_by_it_where_slices_are_no_clusters_and_lose_nothing_where_they_are(name, kind, gain):
    gained = []
    for seed in range(3):
        x, y, said, hit, n_class = planted(name, kind, seed)
        errors = (said != y).astype(np.int8)
        cells, parts, both, _ = found(x, y, said, n_class, errors)
        gained.append(best_f1(both, hit) - best_f1(merged_regions([cells, parts], errors, parts=1), hit))
    assert np.mean(gained) >= gain


@pytest.mark.parametrize("name", ["digits", "mixture", "snippets", "cancer", "wine"])
def test_errors_at_random_make_no_component(name):
    x, y, said, _, n_class = planted(name, "direction")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        said = np.where(rng.random(len(y)) < 0.15, (y + 1) % n_class, y)
        _, parts, _, end = found(x, y, said, n_class, (said != y).astype(np.int8))
        assert (parts >= 0).mean() <= 0.02
        assert (end >= 0).mean() <= 0.02


@pytest.mark.parametrize(("rate", "t2"), [(0.7, 0.5), (0.5, 0.3), (0.2, 0.1)])
def test_nor_where_more_units_fail_than_are_tolerated(rate, t2):
    told = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2_000, 5)).astype(np.float32), rng.integers(0, 4, 2_000)
        errors = (rng.random(2_000) < rate).astype(np.int8)
        said = np.where(errors == 1, (y + rng.integers(1, 4, 2_000)) % 4, y)
        hashes = key_hashes(np.arange(2_000), str(seed))
        with Workers(1) as workers:
            told += (failing_components(x, y, said, errors, hashes, t2, 4, workers) >= 0).any()
    assert told <= 1


def test_wrong_labels_are_no_component():
    """Of labels that lie anywhere each is an error by itself: all that fail lie among units that do not."""
    told = 0
    for name in ("mixture", "moons", "digits", "rings"):
        arrays, _ = recorded(name, 2)
        x, said = arrays.features["hidden"], arrays.logits.argmax(axis=1)
        for seed in range(5):
            rng = np.random.default_rng(seed)
            other = (said + rng.integers(1, arrays.n_class, len(said))) % arrays.n_class
            y = np.where(rng.random(len(said)) < 0.15, other, said)
            errors, hashes = (said != y).astype(np.int8), key_hashes(np.arange(len(y)), "0")
            with Workers(1) as workers:
                points = space.project(space.fit_space({"a": x}, workers), {"a": x}, workers)
                t2 = (errors.sum() + 1) / (len(y) + 2)
                told += (
                    failing_components(points, y, said, errors, hashes, t2, arrays.n_class, workers) >= 0
                ).any()
    assert told <= 2


@pytest.mark.parametrize(
    ("name", "seed"), [("hastie", 2), ("moons", 4), pytest.param("shells", 5, marks=pytest.mark.heavy)]
)
def test_a_cluster_is_not_cut_in_two_where_classes_overlap(name, seed):
    """One class on the other's side of the boundary fails more, and holds half of a cluster that fails."""
    x, y, said, hit, n_class = planted(name, "cluster", seed)
    cells, _, both, _ = found(x, y, said, n_class, (said != y).astype(np.int8))
    assert best_f1(cells, hit) > 0.95
    assert best_f1(both, hit) > best_f1(cells, hit) - 0.05


@pytest.mark.parametrize("drawn", [None, 0.25])
def test_a_part_takes_its_share_of_a_region_only_where_it_makes_a_difference(drawn):
    """By halves: a region of 80 that fails alike in both, and one that fails in one half."""
    errors = np.zeros(2_000, np.int8)
    place, part = np.full(2_000, -1), np.full(2_000, -1)
    place[:80], place[80:160] = 0, 1
    part[40:120] = 0
    part[160:240] = 0
    errors[:80:4] = errors[1:80:4] = errors[2:80:4] = 1
    errors[80:120] = errors[160:240] = 1
    weights = None if drawn is None else np.where(errors == 1, 1.0, 1 / drawn)
    ranked = ranked_regions([place, part], errors, weights)
    assert ranked[0] == (1, 0)
    assert ranked_regions([place, part], errors, weights, parts=1)[:2] == [(0, 0), (1, 0)]


def test_a_component_knows_its_members_without_their_predictions():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 500)
    x = rng.normal(size=(1_000, 4)) + 5 * y[:, None]
    state = fit_mixture(x, y, y, 2, components=2)
    member = score_mixture(x, y, state)
    assert len(np.unique(member[y == 0])) == len(np.unique(member[y == 1])) == 1
    assert member[0] != member[-1]


def test_boxes_that_found_nothing_are_no_component_for_that():
    """Errors at random, and the label of a wrong box is the background: by labels it could not but fail."""
    rng = np.random.default_rng(0)
    x, said = rng.normal(size=(2_000, 5)).astype(np.float32), rng.integers(0, 4, 2_000)
    errors = (rng.random(2_000) < 0.2).astype(np.int8)
    labels, hashes = np.where(errors == 1, 4, said), key_hashes(np.arange(2_000), "0")
    hit = (x[:, 0] > 1) & (said == 2)
    planted = np.where(hit & (rng.random(2_000) < 0.8), np.int8(1), errors)
    with Workers(1) as workers:

        def found(errors):
            given = np.where(errors == 1, 4, said)
            return failing_components(x, given, said, errors, hashes, 0.2, 5, workers, by_label=False)

        assert (failing_components(x, labels, said, errors, hashes, 0.2, 5, workers) >= 0).mean() <= 0.02
        assert (found(errors) >= 0).mean() <= 0.02
        assert best_f1(found(planted), hit) > 0.4


def test_no_error_no_region():
    none = np.full(50, -1)
    assert (merged_regions([none, np.zeros(50, np.int64)], np.zeros(50, np.int8)) == -1).all()


def test_a_rounding_puts_no_small_region_first():
    """Of a sample, whose units stand for fractions of others: what is left of one fails all but entirely."""
    errors = np.zeros(4000, np.int8)
    errors[:400] = 1
    one, other = np.full(4000, -1), np.full(4000, -1)
    other[:200], other[3990:3997] = 0, 0
    other[200:300], other[3980] = 1, 1
    one[300:312], one[3990:3997] = 0, 0
    weights = np.where(errors == 1, 1.0, 6.140252475006253)
    assert ranked_regions([one, other], errors, weights) == [(1, 0), (1, 1), (0, 0)]


def test_regions_merged_by_counts_are_those_of_masks():
    def told(mask, errors, rate):
        own = (errors[mask] == 1).mean() if mask.any() else 0.0
        if own <= rate:
            return 0.0
        right = (1 - own) * np.log((1 - own) / (1 - rate)) if own < 1 else 0.0
        return mask.sum() ** 0.75 * (own * np.log(own / rate) + right)

    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(40, 3_000))
        cells, parts = rng.integers(-1, 30, n), rng.integers(-1, 9, n) * 7
        ways = [cells, np.full(n, -1), parts, rng.integers(-1, 1, n)]
        errors = (rng.random(n) < np.where((cells % 3 == 0) & (cells >= 0), 0.7, 0.1)).astype(np.int8)
        errors[rng.random(n) < 0.1] = -1
        known, made = errors >= 0, np.full(n, -1)
        left = [one == number for one in ways for number in np.unique(one[one >= 0])]
        while left:
            gains = [told(mask & known, errors, (errors[known] == 1).mean()) for mask in left]
            if max(gains) <= 0:
                break
            taken = left.pop(int(np.argmax(gains)))
            made[taken] = made.max() + 1
            left = [rest for mask in left if (rest := mask & ~taken)[known].sum() >= SMALLEST]
        assert np.array_equal(merged_regions(ways, errors), made)
