"""What a batch holds: its inputs, its labels, and which task they make.

`find_inputs`, `find_labels` and `infer_task` run on the training thread: they look at types, names and
shapes, and at values only of what is already on the host. `normalise_labels` is for the writer thread.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LABEL_KEYS = (
    "labels", "label", "targets", "target", "y", "gt_label", "gt_labels", "cls", "class", "classes",
    "class_id", "class_label", "label_ids", "category", "y_true", "fine_label", "coarse_label",
)  # fmt: skip
INPUT_KEYS = (
    "pixel_values", "inputs", "input", "images", "image", "imgs", "img", "x", "input_values",
    "input_features", "input_ids", "data", "points", "features",
)  # fmt: skip
_NOT_CONTENT = frozenset({
    "input_id", "image_id", "image_ids", "id", "ids", "idx", "index", "indices", "sample_idx", "img_id",
    "img_path", "im_file", "path", "paths", "filename", "img_metas", "metainfo", "data_samples", "loss",
    "source_info", "__key__", "__url__", "__index_level_0__",
})  # fmt: skip
_SUM_TOL = 1e-3


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of one batch, in one form.

    Attributes:
        hard: int64 (n,); the class index, -1 where `valid` is False.
        valid: bool (n,); False for rows without a usable label.
        soft: float32 (n, K) where the batch has soft labels (mixup, smoothing), else None; `hard` is its
            argmax.
        ignored: rows whose label is the ignore index.
        out_of_range: rows whose label is no class, or whose soft label is no distribution.
        problem: why the batch as a whole has no labels, with the fix; empty where it has.
    """

    hard: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    soft: npt.NDArray[np.float32] | None = None
    ignored: int = 0
    out_of_range: int = 0
    problem: str = ""


def normalise_labels(labels: Any, n: int, n_class: int | None, ignore_index: int = -100) -> Labels:
    """Bring labels of any common form into one.

    For the writer thread (looks at values): tensors must be on the host.

    Args:
        labels: None; class indices of shape (n,), (n, 1) or () as tensor, array, list of numbers or of small
            tensors; one-hot or soft labels (n, K).
        n: rows of the batch.
        n_class: number of classes K where known.
        ignore_index: the label that means "none" (-100 as in ``torch.nn.CrossEntropyLoss``).

    Returns:
        Labels; what cannot be read is flagged, never raised.

    Examples:
        >>> normalise_labels([1, -100, 7], 3, 5)
        Labels(hard=array([ 1, -1, -1]), valid=array([ True, False, False]), soft=None, ignored=1,
               out_of_range=1, problem='')
    """
    if labels is None:
        return _none(n, "")
    values = _to_array(labels)
    if values is None:
        return _none(
            n, f"labels of type {type(labels).__name__} are no class indices; give label_fn(batch) -> indices"
        )
    if values.ndim == 0 and n == 1:
        values = values.reshape(1)
    if values.ndim > 1 and values.shape[0] == n and values.size == n:
        values = values.reshape(n)
    if values.ndim == 0 or values.shape[0] != n:
        return _none(
            n, f"labels of shape {values.shape} for {n} samples; give label_fn(batch) -> ({n},) indices"
        )
    if values.ndim == 1:
        return _from_indices(values, n, n_class, ignore_index)
    if values.ndim == 2 and (n_class is None or values.shape[1] == n_class):
        return _from_rows(values.astype(np.float32), n)
    wanted = f"({n},) indices or ({n}, {n_class or 'K'}) distributions"
    return _none(n, f"labels of shape {values.shape}; expected {wanted}; give label_fn(batch)")


def _none(n: int, problem: str) -> Labels:
    return Labels(np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.bool_), problem=problem)


def _from_indices(values: npt.NDArray[Any], n: int, n_class: int | None, ignore_index: int) -> Labels:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not (values[finite] == np.round(values[finite])).all():
            return _none(
                n, "labels are real numbers, not class indices; for classification give label_fn(batch)"
            )
        values = np.where(finite, values, -1)
    hard = values.astype(np.int64)
    ignored = hard == ignore_index
    inside = hard >= 0
    if n_class is not None:
        inside &= hard < n_class
    valid = inside & ~ignored
    outside = int((~inside & ~ignored).sum())
    return Labels(np.where(valid, hard, -1), valid, None, int(ignored.sum()), outside)


def _from_rows(values: npt.NDArray[np.float32], n: int) -> Labels:
    if values.shape[1] == 0:
        return _none(n, "labels have no columns")
    with np.errstate(invalid="ignore", over="ignore"):
        valid = (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1, dtype=np.float64) - 1.0) < _SUM_TOL)
    hard = np.where(valid, values.argmax(axis=1), -1).astype(np.int64)
    one_hot = ((values == 0) | (values == 1)).all(axis=1) & valid
    soft = None if one_hot[valid].all() else values
    return Labels(hard, valid, soft, 0, int((~valid).sum()))


def _to_array(labels: Any) -> npt.NDArray[Any] | None:
    """Return a numeric array of what `normalise_labels` may get, else None."""
    if isinstance(labels, (list, tuple)):
        return _stack([_to_array(part) for part in labels])
    if isinstance(labels, Tensor):
        labels = labels.detach()
        labels = (labels.float() if labels.is_floating_point() else labels).numpy()
    if not isinstance(labels, (bool, int, float, np.ndarray, np.generic)):
        return None
    array: npt.NDArray[Any] = np.asarray(labels)
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    return array if array.dtype.kind in "iuf" else None


def _stack(parts: list[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """Stack single samples' labels, one-element ones as scalars; None where they do not fit together."""
    known = [part.reshape(()) if part.size == 1 else part for part in parts if part is not None]
    if len(known) != len(parts) or len({part.shape for part in known}) > 1:
        return None
    return np.stack(known) if known else np.zeros(0, dtype=np.int64)


def find_inputs(batch: Any) -> Any:
    """Find the model's inputs in a batch, every modality of them.

    For the training thread: names, types and shapes only.

    Args:
        batch: tuple, list, mapping, namedtuple, dataclass or object.

    Returns:
        The one input, or a tuple or dict of several; `batch` itself where it has no parts.

    Examples:
        >>> find_inputs({"image": "pixels", "label": 3})
        'pixels'
    """
    names = _names(batch)
    if names is not None:
        content = {
            k: v for k, v in names.items() if k.lower() not in LABEL_KEYS and k.lower() not in _NOT_CONTENT
        }
        if not isinstance(batch, Mapping):
            content = {k: v for k, v in content.items() if k.lower() in INPUT_KEYS} or content
        return next(iter(content.values())) if len(content) == 1 else content
    if _is_sample_list(batch):
        return batch
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        parts = batch[: _label_position(batch, None)]
        return parts[0] if len(parts) == 1 else parts
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return batch[0]
    return batch


def find_labels(batch: Any, n: int | None = None) -> Any | None:
    """Find the labels in a batch.

    For the training thread: names, types and shapes only; what is found is returned as it is.

    Args:
        batch: tuple, list, mapping, namedtuple, dataclass or object. In a tuple without names the labels
            are the first integer column after the inputs, else the second element.
        n: rows of the batch where known; labels of another length are passed over.

    Returns:
        The labels as they are, or None.

    Examples:
        >>> find_labels(("pixels", [1, 2]), 2)
        [1, 2]
    """
    names = _names(batch)
    if names is not None:
        lowered = {key.lower(): value for key, value in names.items()}
        found = [lowered[key] for key in LABEL_KEYS if lowered.get(key) is not None]
        if lowered.get("data_samples") is not None:
            found += _sample_labels(lowered["data_samples"])
        return next((labels for labels in found if n is None or _length(labels) in (n, None)), None)
    if isinstance(batch, (tuple, list)) and len(batch) > 1 and not _is_sample_list(batch):
        labels = batch[_label_position(batch, n)]
        return labels if n is None or _length(labels) in (n, None) else None
    return None


def _names(batch: Any) -> dict[str, Any] | None:
    """Return the named parts of a batch, or None where it has none."""
    if _is_one_pipeline(batch):
        batch = batch[0]
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if batch is None or isinstance(batch, (Tensor, np.ndarray, tuple, list, str, bytes, int, float)):
        return None
    if dataclasses.is_dataclass(batch):
        return {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    named = {key: getattr(batch, key, None) for key in (*INPUT_KEYS, *LABEL_KEYS)}
    return {key: value for key, value in named.items() if value is not None} or None


def _is_one_pipeline(batch: Any) -> bool:
    """Tell whether a list holds the columns of its one pipeline (DALI), and no sample: all are as long."""
    if not isinstance(batch, list) or len(batch) != 1 or not isinstance(batch[0], Mapping):
        return False
    columns = list(batch[0].values())
    if len(columns) < 2 or not all(isinstance(column, Tensor) and column.ndim for column in columns):
        return False
    return len({len(column) for column in columns}) == 1


def _is_sample_list(batch: Any) -> bool:
    """Tell whether a list holds one mapping per sample (detectron2 style) instead of one part per column."""
    return isinstance(batch, list) and len(batch) > 0 and all(isinstance(part, Mapping) for part in batch)


def _label_position(batch: Sequence[Any], n: int | None) -> int:
    """Return the index of the labels in a batch without names."""
    for position in range(1, len(batch)):
        if _is_index_column(batch[position], n):
            return position
    return 1


def _is_index_column(value: Any, n: int | None) -> bool:
    if isinstance(value, (list, tuple)):
        return (
            len(value) > 0
            and n in (None, len(value))
            and all(isinstance(v, (int, np.integer)) for v in value)
        )
    if isinstance(value, Tensor):
        integer = not (value.is_floating_point() or value.is_complex())
    elif isinstance(value, np.ndarray):
        integer = value.dtype.kind in "iub"
    else:
        return False
    column = value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)
    return integer and column and n in (None, value.shape[0])


def _length(value: Any) -> int | None:
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.shape[0]) if value.ndim else 1
    if isinstance(value, (list, tuple)):
        return len(value)
    return 1 if isinstance(value, (bool, int, float, np.generic)) else None


def _sample_labels(samples: Any) -> list[Any]:
    """Return [labels] of mmpretrain's data samples, or [].

    ``gt_score`` of each where all have one: its preprocessor sets it in place as it mixes samples, and its
    losses prefer it to ``gt_label``.
    """
    if not isinstance(samples, (list, tuple)) or not samples:
        return []
    scores, labels = ([getattr(s, name, None) for s in samples] for name in ("gt_score", "gt_label"))
    shares = [score.detach() for score in scores if isinstance(score, Tensor)]
    if len(shares) == len(scores) and all(share.shape == shares[0].shape for share in shares):
        return [torch.stack(shares)]
    return [] if any(label is None for label in labels) else [labels]


def infer_task(logits_shape: Sequence[int] | None, labels: Any) -> tuple[str, str]:
    """Say which task a batch's output and labels make.

    For the training thread: a label tensor on a device is judged by dtype and shape, not by values.

    Args:
        logits_shape: shape of what the model returned (`find_logits`, or `find_main_tensor` where that is
            None).
        labels: the labels as `find_labels` returned them.

    Returns:
        (task, reason): task is "classification", "regression", "segmentation", "multi-label" or
        "unknown"; the reason is one sentence.

    Examples:
        >>> infer_task((8, 10, 64, 64), None)
        ('segmentation', 'The model returns a map of shape (8, 10, 64, 64): one answer per pixel.')
    """
    if logits_shape is None:
        return "unknown", "No floating-point tensor was found in what the model returns."
    shape = tuple(int(size) for size in logits_shape)
    if len(shape) == 4 and shape[2:] != (1, 1):
        return "segmentation", f"The model returns a map of shape {shape}: one answer per pixel."
    shape = shape[:2] if len(shape) == 4 else shape
    kind = _label_kind(labels, shape)
    if kind == "real":
        return "regression", "The labels are real numbers, not class indices or distributions over classes."
    if len(shape) != 2 or shape[1] < 2:
        return "unknown", f"The model returns shape {shape}; a classifier returns (n, K) logits with K >= 2."
    return _task_of_labels(kind, shape[1], type(labels).__name__)


def _task_of_labels(kind: str, width: int, type_name: str) -> tuple[str, str]:
    """Say the task of (n, `width`) logits by the kind of the labels."""
    by_kind = {
        "multi-hot": (
            "multi-label",
            "Label rows hold zeros and ones that do not sum to one: several classes.",
        ),
        "dense": ("unknown", f"The labels have several values per sample and do not match {width} classes."),
        "none": ("classification", f"The model returns {width} logits per sample; there are no labels."),
        "unreadable": (
            "classification",
            f"The model returns {width} logits per sample; labels of type {type_name} hold no class indices.",
        ),
    }
    told = f"The model returns {width} logits per sample and the labels are {kind}."
    return by_kind.get(kind, ("classification", told))


def _label_kind(labels: Any, shape: tuple[int, ...]) -> str:
    """Name what the labels are: none, unreadable, real, dense, multi-hot, or a phrase for usable ones."""
    if labels is None:
        return "none"
    if isinstance(labels, Tensor) and labels.device.type != "cpu":
        return _device_label_kind(labels, shape)
    if isinstance(labels, (list, tuple)) and any(
        isinstance(v, Tensor) and v.device.type != "cpu" for v in labels
    ):
        return "class indices"
    values = _to_array(labels)
    return "unreadable" if values is None else _host_label_kind(values, shape)


def _host_label_kind(values: npt.NDArray[Any], shape: tuple[int, ...]) -> str:
    if values.ndim <= 1 or values.size == values.shape[0]:
        whole = values.dtype.kind != "f" or bool((values == np.round(values)).all())
        return "class indices" if whole else "real"
    if values.ndim != 2 or len(shape) != 2 or values.shape[1] != shape[1]:
        return "real" if values.dtype.kind == "f" and values.shape == shape else "dense"
    if _from_rows(values.astype(np.float32), values.shape[0]).valid.all():
        return "distributions over classes"
    return "multi-hot" if bool(((values >= 0) & (values <= 1)).all()) else "real"


def _device_label_kind(labels: Tensor, shape: tuple[int, ...]) -> str:
    if labels.ndim <= 1 or labels.numel() == labels.shape[0]:
        return "real" if labels.is_floating_point() else "class indices"
    matches = labels.ndim == 2 and len(shape) == 2 and labels.shape[1] == shape[1]
    return "distributions over classes" if matches else "dense"
