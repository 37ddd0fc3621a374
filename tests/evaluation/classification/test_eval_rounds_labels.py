"""Wrong labels in an evaluation in rounds, beside the same in memory: by instance, and learned by heart."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import store_factory as records
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.space.arrays import SplitArrays

FILE = Path(__file__).parents[1] / "analysis" / "strangers.py"
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "table"):
    spec.loader.exec_module(strangers)

SHARE = 0.05


def digits(units, seed=0):
    """An MLP on digits that are blurred anew each time: many units of classes that are well apart."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    pick = rng.integers(0, len(x), units)
    x, y = (x[pick] + 2 * rng.normal(size=(units, 64))) / 16, y[pick]
    x, other, y, truth = train_test_split(x, y, test_size=0.7, random_state=seed, stratify=y)
    model = MLPClassifier((48,), alpha=1e-3, max_iter=30, random_state=seed).fit(x, y)
    return SplitArrays(strangers.log_proba(model, other), truth, {"hidden": strangers.hidden(model, other)})


def units_of(arrays, root, engine, dataset="val"):
    """The unit table in the order of the rows, and the facts."""
    made = records.StoreFactory(root / engine)
    names = [str(number) for number in range(arrays.n_class)]
    run = made.run("net", "v1", n_class=arrays.n_class, class_names=names)
    ids = [f"{number:07d}" for number in range(arrays.rows)]
    hashes = [f"{number:032x}" for number in range(arrays.rows)]
    data = records.Data(arrays.logits, arrays.labels, ids, hashes, {}, features=arrays.features["hidden"])
    made.add_pass(run, dataset, data, batch=2_000)
    options = {"threads": 1, "repeats": 1, "engine": engine, "progress": False}
    result = Evaluator("net", "v1", store=made.store.root).request_evaluation(options=options)
    units = pd.read_parquet(result.folder / result.info["passes"][0]["units"]).sort_values("input_id")
    return units, result.info["facts"][0]


def flagged(arrays, root, engine, dataset="val"):
    """(n,) C01, and the facts."""
    units, facts = units_of(arrays, root, engine, dataset)
    return units["diagnosis"].map(lambda codes: "C01" in list(codes)).to_numpy(), facts


@pytest.fixture(scope="module")
def right():
    return digits(6_000)


@pytest.fixture(scope="module")
def both(right, tmp_path_factory):
    """Who was hit, and what is flagged in rounds and in memory."""
    noisy, hit = strangers.instance_noise(right, SHARE, 0)
    root = tmp_path_factory.mktemp("noisy")
    return hit, *(flagged(noisy, root, engine) for engine in ("rounds", "memory"))


def test_labels_that_follow_the_models_doubt_are_flagged_in_rounds_too(both):
    hit, (rounds, _), (memory, _) = both
    assert hit[memory].mean() >= 0.9
    assert hit[rounds].mean() >= 0.9
    # 64 units a cell are coarser than 32 neighbours: fewer units are sure.
    assert 0.35 * memory.sum() <= rounds.sum() <= 1.1 * memory.sum()
    assert (rounds & memory).sum() >= 0.8 * rounds.sum()


def test_rounds_count_half_as_many_at_least(both):
    _, (_, ours), (_, theirs) = both
    assert 0.5 * theirs["n_hat"] <= ours["n_hat"] <= 1.1 * theirs["n_hat"]
    assert min(ours["label_evidence"], theirs["label_evidence"]) > 10


def test_right_labels_are_left_alone_in_rounds(right, tmp_path):
    found, facts = flagged(right, tmp_path, "rounds")
    assert found.mean() <= 0.001
    assert facts["n_hat"] <= 3


def test_wrong_labels_a_network_has_learned_are_flagged_in_rounds_too(tmp_path):
    arrays, hit, _ = strangers.memorised("blobs", 0)
    (rounds, ours), (memory, theirs) = (
        flagged(arrays, tmp_path, one, "train") for one in ("rounds", "memory")
    )
    assert hit[rounds].mean() >= 0.8
    assert hit[memory].mean() >= 0.8
    assert 0.7 * memory.sum() <= rounds.sum() <= 1.1 * memory.sum()
    # As many as are estimated to be wrong.
    assert rounds.sum() == pytest.approx(ours["n_hat"], rel=0.1)
    assert ours["n_hat"] == pytest.approx(theirs["n_hat"], rel=0.3)


def test_the_cells_of_a_small_split_are_smaller_than_its_classes(tmp_path):
    """A model that knows nothing, and features that tell the classes apart: the units around know the labels."""
    rng = np.random.default_rng(0)
    labels, centres = rng.integers(0, 3, 300), 3 * rng.normal(size=(3, 8))
    features = (centres[labels] + rng.normal(size=(300, 8))).astype(np.float32)
    arrays = SplitArrays(np.zeros((300, 3), np.float32), labels, {"hidden": features})
    rounds, memory = (units_of(arrays, tmp_path, one)[0]["label_quality"] for one in ("rounds", "memory"))
    assert memory.mean() > 0.99
    assert rounds.mean() > 0.99
