"""Error probability, category and label posterior of the kept predictions of a pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.answers import AnalysisOptions, Reference, SplitAnalysis
from mld_core.evaluation.analysis.units import key_texts
from mld_core.evaluation.classification.gather import read_hashes
from mld_core.evaluation.detection.error_probability import BoxProbabilities, BoxRefiner
from mld_core.evaluation.detection.records import (
    BoxRecords,
    class_logits,
    feature_vectors,
    vector_rows,
)
from mld_core.evaluation.detection.units import BoxUnits, box_size, corners, user_columns
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Floats, Ints, Predictions, ordinal, overlap_blocks
from mld_core.evaluation.metrics.classification import entropy, log_softmax
from mld_core.evaluation.metrics.matching import SHARED_IOU
from mld_core.evaluation.space.arrays import SplitArrays, TrainArrays

_ROWS = 65_536


@dataclass(frozen=True)
class BoxAnswers:
    """What the analysis found out about the kept predictions."""

    analysis: SplitAnalysis
    probabilities: BoxProbabilities


def frame_keys(records: BoxRecords, group_key: str | None, first: int = 0) -> NDArray[Any]:
    """(F,) texts that keep boxes together: the user's column, else the input hash, else the input id.

    Args:
        records: A pass, or a part of it.
        group_key: The user's column.
        first: Number of its first frame in the pass.

    Raises:
        ValueError: The user's column is not recorded.
    """
    frames = records.frames
    if group_key is not None:
        own = user_columns(records)
        if group_key not in own.column_names:
            known = ", ".join(map(repr, own.column_names)) or "none"
            raise ValueError(
                f"option group_key={group_key!r}: {records.selection.key.dataset_type!r} has no such column "
                f"of yours (recorded: {known}); record it with additional_fields"
            )
        values = key_texts(own[group_key])
        return np.array([f"frame#{row}" if one is None else one for row, one in enumerate(values, first)])
    dataset = records.selection.key.dataset_type
    hashes = read_hashes(frames["input_hash"].to_numpy().astype(object), dataset, first)
    if hashes is not None:
        return hashes
    ids = frames["input_id"].to_pylist()
    return np.array([f"frame#{row}" if one is None else one for row, one in enumerate(ids, first)])


def box_arrays(
    records: BoxRecords,
    units: BoxUnits,
    folder: Path,
    *,
    group_key: str | None = None,
    train: TrainArrays | None = None,
    first_frame: int = 0,
    workers: Workers | None = None,
) -> SplitArrays:
    """The arrays of the kept predictions as the analysis takes them; without workers on this thread.

    Logits have a last column for background, which is also the label of a box without a truth.
    """
    events, kept = units.events, units.kept
    vectors = vector_rows(records, kept)
    logits = class_logits(records, kept, vectors, folder)
    label = np.where(events.said_of >= 0, events.said_of, records.n_class)
    predictions = records.predictions.take(kept)
    keys = frame_keys(records, group_key, first_frame)
    own = user_columns(records)
    metadata = None
    if own.num_columns:
        metadata = own.to_pandas().iloc[predictions.frame].reset_index(drop=True)
    errors = np.where(units.judged, units.wrong.astype(np.int8), np.int8(-1)).astype(np.int8)
    is_train = records.selection.key.dataset_type == "train"
    return SplitArrays(
        logits=logits,
        labels=np.where(units.judged, label, -1).astype(np.int64),
        features=feature_vectors(records, vectors, folder),
        groups=keys[predictions.frame],
        errors=errors,
        prediction=np.clip(predictions.label, 0, records.n_class - 1),
        extra=box_columns(predictions, workers),
        train=None if is_train else train,
        metadata=metadata,
        name=records.selection.key.dataset_type,
    )


def as_train(arrays: SplitArrays) -> TrainArrays:
    """The arrays of the train split as another split's reference."""
    return TrainArrays(arrays.layers, arrays.labels, groups=arrays.groups, errors=arrays.errors)


def box_columns(predictions: Predictions, workers: Workers | None = None) -> NDArray[np.float32]:
    """Columns of the error estimator from the boxes alone; no truth enters.

    Boxes of a frame stand together; without workers on this thread.

    Log area, log aspect, centre (3D: range and azimuth too), score and its log-odds, how many boxes the frame
    has, the box's rank by score, how many overlap it at 0.3, the largest overlap with a better-scored box of
    its class and of another class.
    """
    count = len(predictions)
    begins = np.append(np.flatnonzero(np.diff(predictions.frame)) + 1, count)
    cuts = np.unique(begins[np.searchsorted(begins, np.arange(_ROWS, count, _ROWS))])
    pieces = map(slice, [0, *cuts], [*cuts, count])
    made = (map if workers is None else workers.map)(lambda some: _columns_of(predictions.take(some)), pieces)
    return np.concatenate(list(made))


def _columns_of(predictions: Predictions) -> NDArray[np.float32]:
    box = predictions.box.astype(np.float64)
    area, aspect = box_size(box)
    flat = box.shape[1] == 4
    center = (box[:, :2] + box[:, 2:4]) / 2 if flat else box[:, :2]
    columns = [np.log(np.maximum(area, 1e-6)), np.log(np.maximum(aspect, 1e-6)), center[:, 0], center[:, 1]]
    if not flat:
        distance = np.hypot(center[:, 0], center[:, 1])
        far = np.maximum(distance, 1e-6)
        columns += [distance, center[:, 1] / far, center[:, 0] / far]
    score = np.clip(predictions.score.astype(np.float64), 1e-6, 1 - 1e-6)
    columns += [score, np.log(score / (1 - score)), *_company(predictions)]
    return np.asarray(np.nan_to_num(np.stack(columns, axis=1)), dtype=np.float32)


def _company(predictions: Predictions) -> list[Floats]:
    """The columns of a box that depend on the other boxes of its frame."""
    count = len(predictions)
    size = np.bincount(predictions.frame, minlength=1)[predictions.frame].astype(np.float64)
    order = np.lexsort((-predictions.score, predictions.frame))
    rank = np.empty(count)
    rank[order] = ordinal(predictions.frame[order])
    crowd, same, other = np.zeros(count), np.zeros(count), np.zeros(count)
    box, frame = corners(predictions.box), predictions.frame
    for pairs in overlap_blocks(box, frame, box, frame, 0.0):
        a, b, iou = (column[pairs.left != pairs.right] for column in vars(pairs).values())
        crowd += np.bincount(a[iou >= SHARED_IOU], minlength=count)
        ahead = rank[b] < rank[a]
        alike = predictions.label[a] == predictions.label[b]
        np.maximum.at(same, a[ahead & alike], iou[ahead & alike])
        np.maximum.at(other, a[ahead & ~alike], iou[ahead & ~alike])
    return [size, rank, crowd, same, other]


def analyse_boxes(
    arrays: SplitArrays,
    units: BoxUnits,
    *,
    options: AnalysisOptions,
    reference: Reference | None = None,
    workers: Workers | None = None,
) -> BoxAnswers:
    """Run the analysis of the kept predictions; at least one must be judged."""
    events = units.events
    code = np.where(units.judged, events.code, -1)
    prediction = arrays.prediction
    assert prediction is not None
    wrong_class = np.where(units.judged & events.matched, (events.said_of != prediction).astype(np.int64), -1)
    refiner = BoxRefiner(code, wrong_class)
    chosen = AnalysisOptions(**{**vars(options), "refine": refiner})
    found = analyse(arrays, reference=reference, options=chosen, workers=workers)
    assert refiner.found is not None
    return BoxAnswers(found, refiner.found)


def logit_figures(logits: NDArray[np.floating], labels: Ints) -> dict[str, Floats]:
    """(N,) `loss` -ln q(label) and `entropy` of q in nats; the loss is NaN where the label is -1."""
    loss, spread = np.full(len(logits), np.nan), np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        span = slice(start, start + _ROWS)
        log_q = log_softmax(logits[span])
        known = labels[span] >= 0
        own = -log_q[np.arange(len(log_q)), np.maximum(labels[span], 0)]
        loss[span] = np.where(known, own, np.nan)
        spread[span] = entropy(log_q)
    return {"loss": loss, "entropy": spread}


def label_for_loss(records: BoxRecords, units: BoxUnits) -> Ints:
    """(N,) class of each kept prediction for the loss, -1 where it is not judged."""
    # A box that found nothing is background, however close the next truth.
    events = units.events
    label = np.where(events.matched & (events.said_of >= 0), events.said_of, records.n_class)
    return np.where(units.judged, label, -1)
