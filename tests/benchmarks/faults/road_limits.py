"""What anybody could find of two faults of `detection3d.py`: `python tests/benchmarks/faults/road_limits.py`.

T12: frames ranked with the simulator's own numbers in place of fitted ones (how likely each object is found, how much
clutter there is, that a fault is 30 degrees wide and leaves nothing). T20: candidates ranked by trees that were shown
which of them are planted, on other seeds, from the columns of T20's regression: what it can reach without the tracks of
true boxes. Both know more than an evaluation can; more than they reach is not to be asked of such a rule.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

sys.path.insert(0, str(Path(__file__).parents[2] / "parts" / "data"))
import road_simulation as roads
from detection3d import precision_at

from mld_core.evaluation.detection3d.diagnoses import diagnose_roads
from mld_core.evaluation.metrics.nuscenes import match_by_distance

STEPS = 144
WIDTH = 12  # steps, 30 degrees
CLUTTER = 75.0  # false boxes a frame, a negative binomial
OBJECTS = 42.0
SHOWN = range(60, 66)


def _cells(frame: Any, box: Any, weights: Any, frames: int) -> Any:
    turn = (np.degrees(np.arctan2(box[:, 1], box[:, 0])) + 180) * STEPS / 360
    cell = frame * STEPS + np.minimum(turn.astype(int), STEPS - 1)
    return np.bincount(cell, weights=weights, minlength=frames * STEPS).reshape(frames, STEPS)


def chance_of_each(seed: int, frames: int) -> tuple[Any, Any, Any]:
    """Frames, boxes, and the chance of each object of `simulate` to be found: its points and its own error are known."""
    rng = np.random.default_rng(seed)
    parts = [
        roads._scene(rng, first, min(roads.SCENE, frames - first), OBJECTS)
        for first in range(0, frames, roads.SCENE)
    ]
    frame, box, points, bias = (np.concatenate([part[k] for part in parts]) for k in (0, 2, 4, 5))
    fresh = np.random.default_rng(0).normal(size=200)
    seen = 0.9 * (np.log1p(points) - 1.2) + 0.8 * 0.7 * bias[:, 0]
    found = 1 / (1 + np.exp(-2.2 * (seen[:, None] + 0.8 * 0.7 * fresh)))
    return frame, box, found.mean(axis=1)


def silent_sectors(seed: int) -> tuple[float, float]:
    """P@k, and the recall that is reached at a precision of 0.9."""
    road = roads.sector_dropout(roads.simulate(seed=seed), seed=seed)
    frame, box, chance = chance_of_each(seed, road.frames)
    said = road.epochs[-1]
    surprise = _cells(frame, box, -np.log1p(-np.clip(chance, 0, 1 - 1e-6)), road.frames)
    beyond = np.bincount(said.frame, minlength=road.frames)
    beyond = beyond - np.bincount(frame, weights=chance, minlength=road.frames)
    # The frame's own clutter, drawn towards the mean as a gamma of shape 8 is.
    clutter = np.maximum(beyond + 8, 8) / (CLUTTER + 8) * CLUTTER
    score = surprise + clutter[:, None] / STEPS
    score = np.where(_cells(said.frame, said.box, None, road.frames) > 0, -1e3, score)
    best = np.full(road.frames, -np.inf)
    for width in range(WIDTH - 2, WIDTH + 1):  # it need not begin with a step
        sums = np.cumsum(np.pad(np.tile(score, 2), ((0, 0), (1, 0))), axis=1)
        best = np.maximum(best, (sums[:, width : width + STEPS] - sums[:, :STEPS]).max(axis=1))
    hit = road.frames_hit
    ranked = hit[np.argsort(-best, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, road.frames + 1)
    recall = np.cumsum(ranked) / hit.sum()
    return float(precision[hit.sum() - 1]), float(recall[precision >= 0.9].max(initial=0))


def candidates(seed: int, share: float) -> tuple[Any, Any, Any, int]:
    """Columns of the kept boxes that T20 asks about, which are planted, its own suspicion, and k."""
    kept: dict[str, Any] = {}
    own = roads.believed

    def spied(columns: Any, some: Any, fold: Any, workers: Any) -> Any:
        kept.update(columns=columns, some=some)
        return own(columns, some, fold, workers)

    roads.believed = spied
    try:
        road = roads.missing_labels(roads.simulate(seed=seed), share, seed)
        evidence = roads.evidence(road)
    finally:
        roads.believed = own
    made = diagnose_roads(evidence)
    said = evidence.predictions
    _, _, at_two = match_by_distance(said, road.removed, 10)
    hit = (at_two >= 0) & (evidence.truth < 0)
    place = {row.tobytes(): k for k, row in enumerate(np.column_stack(_keys(road.epochs[-1])))}
    rows = np.array([place[row.tobytes()] for row in np.column_stack(_keys(said))])
    asked = kept["some"].rows
    at = np.clip(np.searchsorted(asked, rows), 0, len(asked) - 1)
    use = (asked[at] == rows) & (evidence.truth < 0)
    return kept["columns"][at[use]], hit[use], made.suspicion["T20"][use], int(hit.sum())


def _keys(boxes: Any) -> tuple[Any, Any]:
    return boxes.frame.astype(float), boxes.box.astype(float)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[30, 31, 32])
    parser.add_argument("--share", type=float, default=0.03, help="of the labels, that are missing")
    chosen = parser.parse_args()
    print("| seed | T12, the simulator's numbers: P@k | recall at precision 0.9 |\n|---|---|---|")
    for seed in chosen.seeds:
        print("| {} | {:.2f} | {:.2f} |".format(seed, *silent_sectors(seed)))
    shown = [candidates(seed, chosen.share)[:2] for seed in SHOWN]
    model = HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.05, max_leaf_nodes=15, random_state=0
    )
    model.fit(*(np.concatenate([one[k] for one in shown]) for k in (0, 1)))
    print("\n| seed | T20, trees shown the faults of others: P@k | T20 |\n|---|---|---|")
    for seed in chosen.seeds:
        columns, hit, suspicion, k = candidates(seed, chosen.share)
        taught = precision_at(model.predict_proba(columns)[:, 1], hit, k)
        print(f"| {seed} | {taught:.2f} | {precision_at(suspicion, hit, k):.2f} |")


if __name__ == "__main__":
    main()
