"""Regions that are no cluster, in an evaluation in rounds beside the same in memory."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import store_factory as records

from mld_core.evaluation.classification.rounds import method
from mld_core.evaluation.evaluator import Evaluator

FILE = Path(__file__).parents[1] / "space" / "test_eval_mixture.py"
spec = importlib.util.spec_from_file_location("mld_tests_mixture", FILE)
mixture = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(mixture, "planted"):
    spec.loader.exec_module(mixture)


def evaluated(planted, root, engine):
    """(n,) regions of the units and the table of regions."""
    x, y, said, _, n_class = planted
    logits = np.full((len(y), n_class), -2.0, np.float32)
    logits[np.arange(len(y)), said] = 2
    made = records.StoreFactory(root / engine)
    run = made.run("net", "v1", n_class=n_class, class_names=[str(one) for one in range(n_class)])
    ids = [f"{number:07d}" for number in range(len(y))]
    hashes = [f"{number:032x}" for number in range(len(y))]
    made.add_pass(run, "val", records.Data(logits, y, ids, hashes, {}, features=x), batch=400)
    options = {"threads": 1, "repeats": 1, "engine": engine, "progress": False}
    result = Evaluator("net", "v1", store=made.store.root).request_evaluation(options=options)
    units = pd.read_parquet(result.folder / result.info["passes"][0]["units"]).sort_values("input_id")
    return units["region_id"].fillna(-1).to_numpy(np.int64), units, result.regions("val")


@pytest.fixture(scope="module", params=["direction", "part of a class"])
def both(request, tmp_path_factory):
    planted = mixture.planted("mixture", request.param)
    root = tmp_path_factory.mktemp("slices")
    return planted[3], {engine: evaluated(planted, root, engine) for engine in ("rounds", "memory")}


def test_slices_that_are_no_cluster_are_regions_in_rounds_too(both):
    hit, found = both
    rounds, memory = (mixture.best_f1(found[engine][0], hit) for engine in ("rounds", "memory"))
    assert memory > 0.4
    assert rounds > memory - 0.1


def test_the_table_counts_the_units_that_are_in_a_region(both):
    _, found = both
    region, units, table = found["rounds"]
    assert len(table) == region.max() + 1
    for one in table.itertuples():
        inside = region == one.region_id
        assert (one.n, one.errors) == (inside.sum(), units["is_error"].to_numpy()[inside].sum())
        assert one.medoid_input_id in set(units["input_id"][inside])


def test_a_sample_finds_them_too(tmp_path, monkeypatch):
    """Half of the units, wrong ones over-represented: regions of all, counted over all."""
    rng, count = np.random.default_rng(0), 6_000
    centres = rng.normal(size=(10, 12)) * 2
    y = rng.integers(0, 10, count)
    x = (centres[y] + rng.normal(size=(count, 12))).astype(np.float32)
    along = x @ rng.normal(size=12)
    hit = along > np.quantile(along, 0.92)
    said = np.where(rng.random(count) < np.where(hit, 0.7, 0.1), (y + 1) % 10, y)
    monkeypatch.setattr(method.finish, "__kwdefaults__", {"sample": count // 2})
    region, units, table = evaluated((x, y, said, hit, 10), tmp_path, "rounds")
    assert mixture.best_f1(region, hit) > 0.6
    assert table["errors"].sum() == units["is_error"].to_numpy()[region >= 0].sum()


@pytest.mark.parametrize("engine", ["rounds", "memory"])
def test_a_cluster_is_not_cut_in_two_where_classes_overlap(engine, tmp_path):
    planted = mixture.planted("hastie", "cluster", 2)
    assert mixture.best_f1(evaluated(planted, tmp_path, engine)[0], planted[3]) > 0.9
