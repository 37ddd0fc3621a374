"""Classes of true boxes that became the detector's runner-up, more likely the more it doubts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import simulated_detector as simulation

from mld_core.evaluation.detection import stage
from mld_core.evaluation.detection.diagnoses import diagnose_boxes
from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store

FRAMES, SHARE = 300, 0.05


def slipped(scene, seed=0):
    """(truth labels, who was hit)."""
    rng = np.random.default_rng(seed)
    best = np.full(int(scene.object_of.max()) + 1, -1)
    order = np.argsort(scene.score, kind="stable")
    order = order[scene.object_of[order] >= 0]
    best[scene.object_of[order]] = order
    there = scene.truth_object < len(best)
    box = np.where(there, best[np.where(there, scene.truth_object, 0)], -1)
    z = np.where(box[:, None] >= 0, scene.logits[box].astype(float), 0.0)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    ranked = np.argsort(-z, axis=1)
    second = np.where(ranked[:, 0] == scene.truth_label, ranked[:, 1], ranked[:, 0])
    doubt = np.where(box >= 0, 1 - p.max(axis=1) / p.sum(axis=1) + 0.05, 0.0)
    hit = rng.random(len(box)) < SHARE * doubt / doubt.mean()
    return np.where(hit, second, scene.truth_label), hit


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.heavy)])
def made(request, tmp_path_factory):
    """Who was hit, the units, the evidence."""
    scene = simulation.simulate(FRAMES, seed=request.param)
    labels, hit = slipped(scene)
    store, run = Store(tmp_path_factory.mktemp("boxes")), RunKey("net", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": scene.n_class})
    simulation.write(store, run, "val", replace(scene, truth_label=labels))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "diagnose_boxes", lambda e: (seen.append(e), diagnose_boxes(e))[1])
        result = Evaluator("net", "v1", store=store.root).request_evaluation(
            options={"repeats": 1, "progress": False}
        )
    (units,) = [pd.read_parquet(path) for path in result.folder.glob("units-*.parquet")]
    return hit, units, seen[0]


def test_they_rank_first_among_the_labels_of_which_boxes_say_another_class(made):
    hit, _, evidence = made
    score, truth = evidence.wrong_class.score, evidence.units.truth
    rows = np.flatnonzero(~np.isnan(score))
    first = rows[np.argsort(-score[rows], kind="stable")][: int(hit.sum())]
    assert hit[truth[first]].mean() >= 0.6


def test_few_are_flagged_and_those_are_wrong(made):
    """They fall into the pairs that the detector confuses: how many are wrong nothing tells."""
    hit, units, evidence = made
    flagged = units["diagnosis"].map(lambda codes: "D22" in list(codes)).to_numpy()
    assert flagged.sum() <= 0.3 * hit.sum()
    assert flagged.sum() == 0 or hit[evidence.units.truth[flagged]].mean() >= 0.6
