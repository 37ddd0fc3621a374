"""What other recorded epochs of the same split say about suspicious boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.records import BoxRecords, read_boxes
from mld_core.evaluation.metrics.boxes import Floats, FrameState, Ints, Pairs, Predictions, Truths
from mld_core.evaluation.metrics.matching import SHARED_IOU, BoxGeometry
from mld_core.records.read.reader import select

MOST_EPOCHS = 5
AGREEMENT = 0.75


@dataclass(frozen=True)
class Said(FrameState):
    """What the boxes of an epoch say about each of (G,) truths, whatever their score.

    Attributes:
        box: (G, 4) or (G, 7) the closest box of its class, NaN where none is near.
        own: (G,) best score of a box of its class that reaches the event threshold, 0 for none.
        other: (G,) likewise of another class.
        label: (G,) that class, -1 for none.
    """

    summed = ()

    box: Floats
    own: Floats
    other: Floats
    label: Ints


def said_about(predictions: Predictions, truths: Truths, pairs: Pairs, geometry: BoxGeometry) -> Said:
    """What some predictions say about the truths of their frames; `pairs` as `geometry.close`."""
    same = predictions.label[pairs.left] == truths.label[pairs.right]
    score = np.nan_to_num(predictions.score[pairs.left].astype(np.float64))
    box = np.full(truths.box.shape, np.nan)
    near = np.flatnonzero(same & (pairs.value >= geometry.background))
    near = near[np.argsort(pairs.value[near], kind="stable")]
    box[pairs.right[near]] = predictions.box[pairs.left[near]]
    met = pairs.value >= geometry.event
    own, other = np.zeros(len(truths)), np.zeros(len(truths))
    np.maximum.at(own, pairs.right[met & same], score[met & same])
    label = np.full(len(truths), -1, np.int64)
    rows = np.flatnonzero(met & ~same)
    rows = rows[np.argsort(score[rows], kind="stable")]
    other[pairs.right[rows]], label[pairs.right[rows]] = score[rows], predictions.label[pairs.left[rows]]
    return Said(box, own, other, label)


@dataclass(frozen=True)
class OtherEpochs:
    """The votes of other epochs.

    Attributes:
        count: How many epochs were read.
        agree: (N,) epochs with a prediction of the same class close to the kept one (IoU 0.75; 3D: 1 m).
        near: (G,) largest closeness of a truth to any prediction of any epoch.
        votes: (R, 3 E) what the epochs say of some predictions of this one, see `vote_on`.
        said: of each epoch, what its boxes say about the truths.
        predictions: of each epoch, under the frame numbers of this one, where they were asked for.
    """

    count: int
    agree: Ints
    near: Floats
    votes: Floats
    said: tuple[Said, ...] = ()
    predictions: tuple[Predictions, ...] = ()


def look_at_epochs(
    records: BoxRecords,
    kept: Ints,
    geometry: BoxGeometry,
    thresholds: NDArray[np.floating],
    *,
    asked: Ints,
    keep: bool,
) -> OtherEpochs:
    """Read up to five other epochs, the nearest first; frames are paired by input id.

    Args:
        records: The pass.
        kept: (N,) rows of its kept predictions.
        geometry: How close boxes are.
        thresholds: (K,) score thresholds, which hold for the other epochs' votes too.
        asked: (R,) rows of the predictions that `votes` is about.
        keep: Answer with the predictions themselves too.
    """
    selection = records.selection
    agree, near = np.zeros(len(kept), np.int64), np.zeros(len(records.truths))
    here = selection.key.n_epoch
    if here is None:
        return OtherEpochs(0, agree, near, np.empty((len(asked), 0)))
    found = select(selection.store, selection.run, dataset_type=selection.key.dataset_type, n_epoch=None)
    others = [one for one in found if one.key.n_epoch not in {None, here} and one.n_rows]
    others.sort(key=lambda one: abs((one.key.n_epoch or 0) - here))
    info = selection.store.run_info(selection.run)
    own, some = _as_truths(records.predictions.take(kept)), records.predictions.take(asked)
    seen, said, votes = [], [], []
    for one in others[:MOST_EPOCHS]:
        there = read_boxes(one, info)
        predictions = _in_frames_of(there, records)
        if keep:
            seen.append(predictions)
        pairs = geometry.close(predictions, records.truths)
        np.maximum.at(near, pairs.right, pairs.value)
        said.append(said_about(predictions, records.truths, pairs, geometry))
        good = predictions.score >= thresholds[np.clip(predictions.label, 0, len(thresholds) - 1)]
        strong = predictions.take(np.flatnonzero(good))
        pairs = geometry.close(strong, own)
        same = (pairs.value >= AGREEMENT) & (strong.label[pairs.left] == own.label[pairs.right])
        agree[np.unique(pairs.right[same])] += 1
        votes.append(vote_on(some, predictions, geometry))
    told = in_order(votes, len(asked))
    return OtherEpochs(min(len(others), MOST_EPOCHS), agree, near, told, tuple(said), tuple(seen))


def _as_truths(some: Predictions) -> Truths:
    none = np.zeros(len(some), np.bool_)
    return Truths(some.frame, some.label, some.box, none, none, some.rotated)


def in_order(votes: Sequence[Floats], rows: int) -> Floats:
    """(R, 3 E) the votes of E epochs, each column by size: which epoch said it does not count."""
    return np.concatenate(np.sort(np.stack(votes), axis=0), axis=1) if votes else np.empty((rows, 0))


def vote_on(some: Predictions, predictions: Predictions, geometry: BoxGeometry) -> Floats:
    """(R, 3) best score of the near boxes of the class, of other classes, and the largest closeness."""
    made = np.zeros((len(some), 3))
    pairs = geometry.close(predictions, _as_truths(some))
    score = np.nan_to_num(predictions.score[pairs.left].astype(np.float64))
    same = predictions.label[pairs.left] == some.label[pairs.right]
    near = pairs.value >= SHARED_IOU
    for column, chosen in enumerate((near & same, near & ~same)):
        np.maximum.at(made[:, column], pairs.right[chosen], score[chosen])
    np.maximum.at(made[:, 2], pairs.right, pairs.value)
    return made


def _in_frames_of(there: BoxRecords, records: BoxRecords) -> Predictions:
    """The predictions of another epoch under the frame numbers of this one."""
    ids = {one: row for row, one in enumerate(records.frames["input_id"].to_pylist()) if one is not None}
    number = np.array([ids.get(one, -1) for one in there.frames["input_id"].to_pylist()] or [-1], np.int64)
    frame = number[there.predictions.frame]
    order = np.argsort(frame, kind="stable")
    rows = order[np.searchsorted(frame[order], 0) :]
    moved = there.predictions.take(rows)
    return Predictions(frame[rows], moved.label, moved.score, moved.box, moved.rotated)
