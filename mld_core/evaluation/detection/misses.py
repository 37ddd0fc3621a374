"""How likely a truth is to be missed, judged by what is known of it without looking at the predictions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.error_probability import ErrorProbability, estimate_errors
from mld_core.evaluation.analysis.stack_features import ONE_HOT_CLASSES, StackInputs
from mld_core.evaluation.detection.records import KNOWN, BoxRecords
from mld_core.evaluation.detection.units import box_size, corners
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Truths, group_pairs, overlap_blocks
from mld_core.evaluation.metrics.matching import SHARED_IOU
from mld_core.evaluation.space.neighbourhood import surroundings
from mld_core.evaluation.statistics.folds import folds_of, group_codes, key_hashes

CLOSE_LENGTHS = 2.0

EXACT_LIMIT = 50_000
"""Truths up to which their surroundings are searched in full: all that is read of them is error rates."""


def truth_columns(records: BoxRecords) -> NDArray[np.float32]:
    """(G, P) columns: log size, log aspect, centre, border, truths around, recorded properties."""
    truths = records.truths
    area, aspect = box_size(truths.box)
    columns: list[NDArray[np.floating]] = [
        np.log(np.maximum(area, 1e-6)),
        np.log(np.maximum(aspect, 1e-6)),
        records.truth_center[:, 0],
        records.truth_center[:, 1],
        records.border.astype(np.float64),
        *neighbours_of(truths),
    ]
    if truths.box.shape[1] == 7:
        distance = np.hypot(truths.box[:, 0], truths.box[:, 1])
        columns += [distance, np.arctan2(truths.box[:, 1], truths.box[:, 0])]
    for name in KNOWN:
        if name in records.truth_columns.column_names:
            column = records.truth_columns[name]
            if column.null_count < len(column):
                columns.append(column.cast(pa.float64()).to_numpy())
    return np.nan_to_num(np.stack(columns, axis=1), nan=-1.0).astype(np.float32)


def neighbours_of(truths: Truths) -> list[Floats]:
    """(G,) truths within two box lengths, truths of the frame, and the largest overlap with another truth."""
    count, box = len(truths), corners(truths.box)
    center, length = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).max(axis=1, initial=0)
    near, most = np.zeros(count), np.zeros(count)
    for i, j in group_pairs(truths.frame, truths.frame):
        a, b = i[i != j], j[i != j]
        close = np.hypot(*(center[a] - center[b]).T) < CLOSE_LENGTHS * length[a]
        near += np.bincount(a[close], minlength=count)
    for pairs in overlap_blocks(box, truths.frame, box, truths.frame, 0.0):
        other = pairs.take(pairs.left != pairs.right)
        np.maximum.at(most, other.left, other.value)
    frame = np.bincount(truths.frame, minlength=1)[truths.frame]
    return [near, frame.astype(np.float64), most]


def crowded(truths: Truths) -> Ints:
    """(G,) how many other truths overlap a truth at 0.3 (3D: the squares around the footprints)."""
    made, box = np.zeros(len(truths), np.int64), corners(truths.box)
    for pairs in overlap_blocks(box, truths.frame, box, truths.frame, SHARED_IOU):
        made += np.bincount(pairs.left[pairs.left != pairs.right], minlength=len(truths))
    return made


def estimate_misses(
    records: BoxRecords, missed: Bools, keys: NDArray[np.generic], salts: tuple[str, ...], workers: Workers
) -> ErrorProbability | None:
    """The probability of every truth to be missed, cross-fitted; None without truths that count.

    Args:
        records: The pass.
        missed: (G,) not found within its class.
        keys: (F,) group key of every frame.
        salts: One repeat of the cross-fit for each.
        workers: Open pool.
    """
    truths = records.truths
    known = np.flatnonzero(truths.counts & (truths.label < records.n_class))
    if len(known) == 0:
        return None
    columns = truth_columns(records)
    spread = columns.std(axis=0)
    points = ((columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32)
    names, groups = group_codes(keys[truths.frame])
    folds = [folds_of(key_hashes(names, salt))[groups] for salt in salts]
    around = surroundings(points, groups, known, workers, exact_limit=EXACT_LIMIT)
    parts: list[NDArray[np.generic]] = [columns]
    if records.n_class <= ONE_HOT_CLASSES:
        parts.append(truths.label[:, None] == np.arange(records.n_class))
    errors = np.where(truths.counts, missed.astype(np.int8), np.int8(-1)).astype(np.int8)
    label = np.clip(truths.label, 0, records.n_class - 1)
    inputs = StackInputs(
        np.concatenate(parts, axis=1).astype(np.float32),
        label,
        label,
        records.n_class,
        errors,
        known,
        around.around,
    )
    # What the estimate must beat: the size alone, larger objects being missed less.
    size = columns[:, 0].astype(np.float64)
    return estimate_errors(inputs, size, groups, folds, workers)
