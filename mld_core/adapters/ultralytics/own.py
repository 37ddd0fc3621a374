"""Final detections as Ultralytics' own validator and predictor have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mld_core.adapters.base import FrameGeometry, OwnFinals, Thresholds
from mld_core.adapters.settings import read
from mld_core.adapters.ultralytics.rotated import rotated_rows
from mld_core.adapters.ultralytics.truths import batch_geometry
from mld_core.adapters.ultralytics.yolo import LIMITS, result_rows


def validated(args: Any, preds: Sequence[Any], batch: Mapping[str, Any]) -> OwnFinals:
    """What the validator's metric is given, in pixels of the network's input: copies, it may write to them.

    Args:
        args: of the validator.
        preds: per image a dict of "bboxes" (N, 4), rotated (N, 5), "conf" (N,), "cls" (N,), or rows (N, 6) of
            older releases.
        batch: the library's.

    Raises:
        ValueError: the batch tells no sizes.
    """
    geometry = batch_geometry(batch)
    if geometry is None:
        raise ValueError(f"img={type(batch.get('img')).__name__}: expected a tensor (B, C, H, W)")
    return OwnFinals([_rows(pred) for pred in preds], _stated(args), geometry)


def predicted(args: Any, results: Any) -> OwnFinals:
    """What `predict` answers, in pixels of the images as given.

    Raises:
        ValueError: these are no results of a detector.
    """
    rows = result_rows(results)
    if rows is None:
        raise ValueError(f"results={type(results).__name__}: expected a list of the library's results")
    geometry = [FrameGeometry(*shape) for _, shape in rows]
    found = [data.clone() for data, _ in rows]
    return OwnFinals(found, _stated(args), geometry, fitted=True, best_class=True)


def _stated(args: Any) -> Thresholds:
    return Thresholds.stated(*(read(args, name) for name in LIMITS))


def _rows(pred: Any) -> Tensor:
    if isinstance(pred, Tensor):
        return pred[:, :6].detach().clone()
    parts = [pred["bboxes"], pred["conf"][:, None], pred["cls"][:, None]]
    if parts[0].shape[1] == 5:
        return rotated_rows(parts[0].detach().clone(), torch.cat(parts[1:], 1).detach())
    return torch.cat([part.detach().to(parts[0].dtype) for part in parts], 1)
