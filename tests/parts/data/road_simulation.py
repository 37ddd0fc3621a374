"""A simulated LiDAR detector on simulated roads, with faults of known place; for tests and the fault benchmark.

Scenes of 30 frames; objects of ten classes move or stand; points fall with the square of the distance and with
occlusion. A detector finds what has points, with errors that shrink with their number: part of each error belongs to
the object (the same in all epochs), part is new in each. False boxes come from clutter, 60 % of which
stands in all epochs. Nothing here is fitted to
the diagnoses; class sizes and shares are roughly nuScenes'.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from mld_core.evaluation.detection.analysis import box_columns
from mld_core.evaluation.detection.epochs import in_order, vote_on
from mld_core.evaluation.detection.events import best_thresholds
from mld_core.evaluation.detection.evidence import BELIEVED
from mld_core.evaluation.detection.objects import believed, candidates
from mld_core.evaluation.detection3d.evidence import RoadEvidence
from mld_core.evaluation.detection3d.geometry import RoadBoxes
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Predictions, Truths, near_pairs
from mld_core.evaluation.metrics.nuscenes import NuscenesProfile, match_by_distance
from mld_core.evaluation.statistics.folds import assign_folds

CLASSES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
SIZES = np.array(
    [
        [1.95, 4.6, 1.7],
        [2.5, 6.9, 2.8],
        [2.9, 11.0, 3.5],
        [2.9, 12.3, 3.9],
        [2.8, 6.4, 3.2],
        [0.67, 0.73, 1.77],
        [0.77, 2.1, 1.47],
        [0.6, 1.7, 1.28],
        [0.41, 0.41, 1.07],
        [2.5, 0.5, 0.98],
    ]
)
SHARE = np.array([0.42, 0.09, 0.03, 0.03, 0.03, 0.2, 0.03, 0.03, 0.07, 0.07])
MOVES = np.array([1, 1, 1, 1, 0, 1, 1, 1, 0, 0], bool)
SCENE = 30
REACH = 54.0
EPOCHS = 3


@dataclass(frozen=True)
class Road:
    """Boxes of some frames, three epochs of predictions, and where the planted faults are.

    Attributes:
        truths: what the annotator wrote.
        true_velocity, n_points: of each truth.
        epochs: predictions of every score, of each epoch; the last is the one that is evaluated.
        velocity: of the last epoch's predictions.
        hit: (G,) truths with a planted fault.
        removed: boxes of truths that were taken away.
        frames_hit: frames with a planted sensor fault.
    """

    frames: int
    truths: Truths
    true_velocity: np.ndarray
    n_points: np.ndarray
    epochs: list[Predictions]
    velocity: np.ndarray
    hit: np.ndarray
    removed: Truths
    frames_hit: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def simulate(frames=600, seed=0, objects=42.0, clutter=75.0) -> Road:
    """Roads without a planted fault."""
    rng = np.random.default_rng(seed)
    parts = [_scene(rng, first, min(SCENE, frames - first), objects) for first in range(0, frames, SCENE)]
    frame, label, box, velocity, points, bias = (
        np.concatenate([part[k] for part in parts]) for k in range(6)
    )
    order = np.argsort(frame, kind="stable")
    frame, label, box, velocity, points, bias = (
        one[order] for one in (frame, label, box, velocity, points, bias)
    )
    no = np.zeros(len(frame), bool)
    truths = Truths(frame, label, box, no, no)
    lasting = _clutter(rng, frames, 0.6 * clutter)
    made = [_detect(rng, truths, velocity, points, bias, frames, clutter, lasting) for _ in range(EPOCHS)]
    return Road(
        frames,
        truths,
        velocity,
        points,
        [found for found, _ in made],
        made[-1][1],
        np.zeros(len(frame), bool),
        truths.take(np.zeros(0, int)),
        np.zeros(frames, bool),
    )


def _scene(rng, first, length, objects):
    """Objects of a scene in all its frames, seen from a vehicle that stands."""
    count = rng.poisson(objects * rng.uniform(0.5, 1.5))
    label = rng.choice(10, count, p=SHARE)
    far, turn = REACH * np.sqrt(rng.random(count)), rng.uniform(-np.pi, np.pi, count)
    far = np.maximum(far, 3)
    # Streets: most objects stand in a few directions.
    lanes = rng.uniform(-np.pi, np.pi, 4)
    along = rng.random(count) < 0.5
    turn = np.where(along, lanes[rng.integers(0, 4, count)] + rng.normal(0, 0.25, count), turn)
    size = SIZES[label] * np.exp(rng.normal(0, 0.1, (count, 3)))
    yaw = rng.uniform(-np.pi, np.pi, count)
    speed = np.where(MOVES[label] & (rng.random(count) < 0.4), rng.gamma(3, 2.0, count), 0.0)
    speed = np.where(label == 5, np.minimum(speed, 1.6), speed)
    velocity = speed[:, None] * np.column_stack([np.cos(yaw), np.sin(yaw)])
    occlusion = np.exp(-rng.exponential(0.8, count))
    bias = rng.normal(0, 1, (count, 10))
    out = []
    for step in range(length):
        centre = np.column_stack([far * np.cos(turn), far * np.sin(turn)]) + velocity * 0.5 * (
            step - length / 2
        )
        distance = np.hypot(*centre.T)
        inside = np.flatnonzero(distance < REACH)
        box = np.column_stack([centre, np.full(count, -0.5), size, yaw])[inside]
        area = np.sqrt(size[:, 1] * size[:, 0]) * size[:, 2]
        rate = 4500 * area * occlusion / np.maximum(distance, 3) ** 2
        points = rng.poisson(rate * np.exp(rng.normal(0, 0.3, count)))[inside]
        out.append(
            (np.full(len(inside), first + step), label[inside], box, velocity[inside], points, bias[inside])
        )
    return [np.concatenate([part[k] for part in out]) for k in range(6)]


def _clutter(rng, frames, mean):
    """False boxes: frame, class, box, score; most are doubtful."""
    where = np.repeat(np.arange(frames), rng.negative_binomial(8, 8 / (8 + mean), frames))
    count = len(where)
    guess = rng.choice(10, count, p=SHARE)
    far, turn = REACH * np.sqrt(rng.random(count)), rng.uniform(-np.pi, np.pi, count)
    size = SIZES[guess] * np.exp(rng.normal(0, 0.2, (count, 3)))
    centre = [far * np.cos(turn), far * np.sin(turn), rng.normal(-0.5, 0.4, count)]
    box = np.column_stack([*centre, size, 2 * np.pi * rng.random(count)])
    doubt = np.where(rng.random(count) < 0.08, rng.beta(2.5, 3, count), rng.beta(1, 12, count))
    return where, guess, box, np.clip(doubt, 1e-4, 1 - 1e-4)


def _detect(rng, truths, velocity, points, bias, frames, clutter, lasting):
    count = len(truths)
    log_points = np.log1p(points)
    # Part of every error belongs to the object, part is new in each epoch and frame.
    fresh = rng.normal(0, 1, (count, 10))
    error = 0.7 * bias + 0.7 * fresh
    seen = 0.9 * (log_points - 1.2) + 0.8 * error[:, 0]
    found = np.flatnonzero(rng.random(count) < 1 / (1 + np.exp(-2.2 * seen)))
    scale = 0.12 + 0.55 * np.exp(-0.45 * log_points[found])
    box = truths.box[found].copy()
    box[:, :2] += error[found, 1:3] * scale[:, None]
    box[:, 2] += error[found, 3] * 0.3 * scale
    box[:, 3:6] *= np.exp(0.35 * error[found, 4:7] * scale[:, None])
    box[:, 6] += 0.25 * error[found, 7] * scale
    flipped = (0.75 * bias[found, 8] + 0.66 * fresh[found, 8]) > 1.75 + 0.12 * log_points[found]
    box[flipped, 6] += np.pi
    said = truths.label[found].copy()
    confused = rng.random(len(found)) < 0.03
    said[confused] = rng.choice(10, int(confused.sum()), p=SHARE)
    moving = velocity[found] + rng.normal(0, 0.3, (len(found), 2)) * (1 + scale[:, None])
    moving[flipped] *= np.where(rng.random(int(flipped.sum())) < 0.3, -1, 1)[:, None]
    score = 1 / (1 + np.exp(-(0.8 * seen[found] + 0.5 * error[found, 9] + 0.2)))

    where, guess, ghost, doubt = _clutter(rng, frames, 0.4 * clutter)
    kept = [np.concatenate(pair) for pair in zip(lasting, (where, guess, ghost, doubt), strict=True)]
    where, guess, ghost, doubt = kept
    doubt = 1 / (1 + np.exp(-(np.log(doubt / (1 - doubt)) + rng.normal(0, 0.3, len(doubt)))))
    ghost = ghost + rng.normal(0, 0.15, ghost.shape) * [1, 1, 1, 0, 0, 0, 0.5]
    frame = np.concatenate([truths.frame[found], where])
    order = np.argsort(frame, kind="stable")
    columns = (
        frame,
        np.concatenate([said, guess]),
        np.concatenate([score, doubt]).astype(np.float32),
        np.concatenate([box, ghost]),
    )
    moves = np.concatenate([moving, rng.normal(0, 1, (len(where), 2))])
    return Predictions(*(one[order] for one in columns)), moves[order]


# --- planted faults -------------------------------------------------------------------------------------------


def _some(rng, road, share, among=None):
    rows = np.arange(len(road.truths)) if among is None else np.flatnonzero(among)
    return np.sort(rng.choice(rows, round(share * len(rows)), replace=False))


def missing_labels(road: Road, share, seed=0) -> Road:
    """Take truths away."""
    gone = _some(np.random.default_rng(seed), road, share)
    keep = np.setdiff1d(np.arange(len(road.truths)), gone)
    return replace(
        road,
        truths=road.truths.take(keep),
        true_velocity=road.true_velocity[keep],
        n_points=road.n_points[keep],
        hit=np.zeros(len(keep), bool),
        removed=road.truths.take(gone),
    )


def _changed(road, rows, box):
    hit = np.zeros(len(road.truths), bool)
    hit[rows] = True
    return replace(road, truths=replace(road.truths, box=box), hit=hit)


def shifted_labels(road: Road, share=0.05, metres=1.0, seed=0) -> Road:
    """Move truths by a metre in some direction."""
    rng = np.random.default_rng(seed)
    rows, box = _some(rng, road, share), road.truths.box.copy()
    turn = rng.uniform(-np.pi, np.pi, len(rows))
    box[rows, :2] += metres * np.column_stack([np.cos(turn), np.sin(turn)])
    return _changed(road, rows, box)


def flipped_labels(road: Road, share=0.05, seed=0) -> Road:
    """Turn truths round; only classes with a heading of period 2 pi."""
    rng = np.random.default_rng(seed)
    rows, box = _some(rng, road, share, among=road.truths.label < 8), road.truths.box.copy()
    box[rows, 6] += np.pi
    return _changed(road, rows, box)


def _without(road: Road, drop) -> list[Predictions]:
    return [one.take(np.flatnonzero(~drop(one))) for one in road.epochs]


def range_dropout(road: Road, label=0, metres=30.0) -> Road:
    """One class is not predicted beyond a distance."""
    drop = lambda p: (p.label == label) & (np.hypot(p.box[:, 0], p.box[:, 1]) > metres)  # noqa: E731
    kept = ~drop(road.epochs[-1])
    return replace(road, epochs=_without(road, drop), velocity=road.velocity[kept])


def sector_dropout(road: Road, share=0.05, degrees=30.0, seed=0) -> Road:
    """In some frames nothing is predicted in a sector."""
    rng = np.random.default_rng(seed)
    frames = np.zeros(road.frames, bool)
    frames[rng.choice(road.frames, round(share * road.frames), replace=False)] = True
    start = rng.uniform(0, 360, road.frames)

    def drop(p):
        azimuth = np.degrees(np.arctan2(p.box[:, 1], p.box[:, 0]))
        return frames[p.frame] & ((azimuth - start[p.frame]) % 360 < degrees)

    kept = ~drop(road.epochs[-1])
    return replace(road, epochs=_without(road, drop), velocity=road.velocity[kept], frames_hit=frames)


# --- from boxes to the evidence of the diagnoses ----------------------------------------------------------------


def evidence(road: Road, *, epochs=True, objects=True):
    """What the evaluation of a pass hands to `diagnose_roads`; the error probability is a plain cross-fitted one.

    Without `objects` T20 finds nothing, and most of the time is saved.
    """
    profile = NuscenesProfile.of(CLASSES)
    every, truths = road.epochs[-1], road.truths
    right, _, _ = match_by_distance(every, truths, profile.n_class)
    hits = right >> 2 & 1 == 1
    counts = np.bincount(truths.label, minlength=10)
    least = best_thresholds(every.label, every.score, hits, np.zeros(len(every), bool), counts)
    kept = np.flatnonzero(every.score >= least[every.label])
    found = every.take(kept)
    _, _, at_two = match_by_distance(found, truths, profile.n_class)
    anything = near_pairs(truths.box, truths.frame, every.box, every.frame, 2.0)
    silent = np.ones(len(truths), bool)
    silent[anything.left] = False
    missed = np.ones(len(truths), bool)
    missed[at_two[at_two >= 0]] = False
    others = road.epochs[:-1] if epochs else ()
    return RoadEvidence(
        found,
        truths,
        at_two,
        np.ones(len(found), bool),
        missed,
        silent,
        profile,
        road.frames,
        every,
        velocity=road.velocity[kept],
        true_velocity=road.true_velocity,
        n_points=road.n_points,
        error_proba=_error_proba(found, at_two < 0),
        likely=min(0.5, float((at_two < 0).mean())),
        epochs=others,
        **(_objects(every, truths, kept, others) if objects else {}),
    )


def _objects(every, truths, kept, epochs):
    geometry = RoadBoxes()
    pairs, closest = geometry.close(every, truths), np.zeros(len(every))
    np.maximum.at(closest, pairs.left, pairs.value)
    some = candidates(every, np.ones(len(every), bool), closest, kept, geometry, weak=False)
    if some is None:
        return {}
    asked = every.take(some.rows)
    votes = in_order([vote_on(asked, other, geometry) for other in epochs], len(asked))
    columns = np.column_stack([some.columns, votes, asked.label[:, None] == np.arange(10)]).astype(float)
    with Workers(1) as workers:
        found = believed(columns, some, assign_folds(asked.frame // SCENE, "0"), workers)
    odds, sure = np.full(len(every), np.nan), np.zeros(len(every), bool)
    odds[found.rows], sure[found.rows] = found.odds, found.belief >= BELIEVED
    return {"objects": odds[kept], "believed": sure[kept]}


def _error_proba(found, wrong):
    table, folds = box_columns(found), assign_folds(found.frame // SCENE, "0")
    made = np.empty(len(found))
    for fold in range(5):
        rest = folds != fold
        trees = HistGradientBoostingClassifier(
            max_iter=80, learning_rate=0.08, max_leaf_nodes=15, random_state=0
        )
        made[~rest] = trees.fit(table[rest], wrong[rest]).predict_proba(table[~rest])[:, 1]
    return made
