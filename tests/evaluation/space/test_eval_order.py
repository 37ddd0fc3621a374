"""Near copies inside a split and the order of its data, on sets that ship with scikit-learn."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from mld_core.evaluation.space.order import class_places, near_copies, ordered_units

FILE = Path(__file__).parents[1] / "analysis" / "strangers.py"
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "table"):
    spec.loader.exec_module(strangers)


def nearest(x):
    distance, rows = NearestNeighbors(n_neighbors=17).fit(x).kneighbors(x)
    return np.log(np.maximum(distance[:, 1:], 1e-20)), rows[:, 1:]


@pytest.mark.parametrize("name", ["digits", "mixture", "cancer"])
@pytest.mark.parametrize("seed", [0, 1])
def test_near_copies_are_found_and_nobody_else(name, seed):
    x = strangers.table(name, seed)[1]
    far, _ = nearest(x)
    assert near_copies(far[:, 0], far[:, 7]).mean() < 0.01
    rng = np.random.default_rng(seed)
    source = rng.choice(len(x), len(x) // 20, replace=False)
    copies = x[source] + 1e-3 * x.std() * rng.normal(size=(len(source), x.shape[1]))
    far, _ = nearest(np.concatenate([x, copies]))
    found = near_copies(far[:, 0], far[:, 7])
    planted = np.zeros(len(found), bool)
    planted[source], planted[len(x) :] = True, True
    assert found[planted].mean() > 0.75
    assert found[~planted].mean() < 0.01


@pytest.mark.parametrize("name", ["digits", "mixture", "cancer", "snippets"])
@pytest.mark.parametrize("seed", [0, 1])
def test_order_is_seen_where_there_is_one(name, seed):
    _, x, _, y = strangers.table(name, seed)
    assert not ordered_units(nearest(x)[1], y).any()
    by_class = np.argsort(y, kind="stable")
    assert not ordered_units(nearest(x[by_class])[1], y[by_class]).any()
    # A recording: each unit looks like the one before it.
    along = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][0]
    walked = np.argsort(x @ along, kind="stable")
    assert ordered_units(nearest(x[walked])[1], y[walked]).mean() > 0.05


def test_drift_along_the_index_is_an_order():
    _, x, _, y = strangers.table("cancer", 0)
    moved = x + np.linspace(0, 4, len(x))[:, None]
    assert ordered_units(nearest(moved)[1], y).mean() > 0.3


def test_places_run_from_nought_to_one_in_each_class():
    labels = np.array([2, 0, 2, 0, 2, 2])
    assert class_places(labels).tolist() == [0, 0, 0.25, 0.5, 0.5, 0.75]


def test_few_units_say_nothing():
    none = np.full(20, np.nan)
    assert not near_copies(none, none).any()
    assert not ordered_units(np.full((20, 16), -1), np.zeros(20, np.int64)).any()
