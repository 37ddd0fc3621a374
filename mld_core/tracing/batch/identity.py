"""Which sample is which: ids in a batch, ids from a dataset's own order.

`locate_ids` is for the training thread: it finds the ids and reads only what is on the host. `as_id_list`
turns what was found into text; where ids are tensors on a device that copies them, so it is for the
writer thread. `find_ids` is both in one, for host batches.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

ID_KEY = "input_id"
LOADER_INDEX = "loader_index"
SHARD_KEY = "__key__"
_META_KEYS = ("token", "lidar_path", "sample_idx", "img_id", "img_path")
_META_COLUMNS = (
    "data_samples",
    "img_metas",
    "metas",
    "metadata",
)  # the last two: MIT BEVFusion; OpenPCDet, det3d
_TARGET_KEYS = ("labels", "label", "targets", "target", "annotations")
_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
_FIX = "give a list of str or int, or a 1-D integer or string array or tensor"


class DatasetIndexId(str):
    """An id that `WithInputId` made from the dataset's index.

    A str so that collating keeps it (in a list) and no framework moves it to a device; a class of its own
    so that its source is known after worker processes and collating.
    """

    __slots__ = ()


def as_id_list(ids: Any) -> list[str]:
    """Write sample ids as text.

    For the writer thread where `ids` are tensors on a device (they are copied to the host), else for any.

    Args:
        ids: list or tuple of str, int, bytes or one-element tensors; a 1-D integer, string or bytes
            array; a 1-D integer tensor; one such value alone.

    Returns:
        One text per sample: integers in decimal, bytes as UTF-8.

    Raises:
        ValueError: the ids are of another kind or have more than one dimension.

    Examples:
        >>> as_id_list(np.array([7, 12])), as_id_list(["a", b"b", 3])
        (['7', '12'], ['a', 'b', '3'])
    """
    if ids is None:
        raise ValueError(f"ids=None: {_FIX}, one per sample")
    if isinstance(ids, Tensor):
        if ids.is_floating_point() or ids.is_complex() or str(ids.dtype) == "torch.bool":
            raise ValueError(f"ids are a tensor of {ids.dtype}: {_FIX}")
        ids = ids.detach().cpu().numpy()
    if isinstance(ids, (str, bytes, int, np.generic)):
        return [_as_id(ids)]
    if isinstance(ids, np.ndarray):
        if ids.ndim > 1:
            raise ValueError(f"ids have shape {ids.shape}: {_FIX}")
        return [_as_id(value) for value in np.atleast_1d(ids).tolist()]
    if not hasattr(ids, "__len__") or not hasattr(ids, "__iter__"):
        raise ValueError(f"ids are a {type(ids).__name__}: {_FIX}")
    if set(map(type, ids)) == {str}:  # the usual case, without a call for each
        return list(ids)
    return [_as_id(value) for value in ids]


def _as_id(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"id {value!r} is a truth value: {_FIX}")  # noqa: TRY004 - one error for every bad id
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (Tensor, np.ndarray)):
        if int(np.prod(value.shape)) == 1:
            return as_id_list(value.reshape(1))[0]
        raise ValueError(f"an id has shape {tuple(value.shape)}: {_FIX}")
    if hasattr(value, "__fspath__"):
        return str(value)
    raise ValueError(f"id {value!r} is a {type(value).__name__}: {_FIX}")


def find_ids(batch: Any, n: int, id_fn: Callable[[Any], Any] | None = None) -> tuple[list[str], str] | None:
    """Find the sample ids in a batch, the best source first.

    The order: ``id_fn(batch)``; ``input_id`` in the batch; ``image_id`` in the batch or its targets;
    ``__key__`` in the batch (WebDataset); ``token``, ``lidar_path``, ``sample_idx`` or ``img_id`` in the
    samples' metainfo. For host batches; on the training thread use `locate_ids`, which does not wait for ids
    that lie on a device.

    Args:
        batch: what the loader gave.
        n: samples in it.
        id_fn: the user's function of the batch.

    Returns:
        (ids, source), source one of "id_fn", "input_id", "dataset_index", "image_id", "__key__", "metainfo";
        None without ids.

    Raises:
        ValueError: `id_fn` gave no list of `n` ids.

    Examples:
        >>> find_ids({"image": None, "input_id": ["a", "b"]}, 2)
        (['a', 'b'], 'input_id')
    """
    located = locate_ids(batch, n, id_fn)
    return None if located is None else (as_id_list(located[0]), located[1])


def locate_ids(batch: Any, n: int, id_fn: Callable[[Any], Any] | None = None) -> tuple[Any, str] | None:
    """Find the sample ids as they are, for `as_id_list` to write as text later.

    For the training thread: no value of a device tensor is read. Arguments, order and errors as in
    `find_ids`.

    Returns:
        (ids, source) or None. Ids on the host are a fresh list already (a loader may reuse its buffers).
    """
    if id_fn is not None:
        ids = id_fn(batch)
        if _count(ids) != n:
            raise ValueError(f"id_fn gave {_count(ids)} ids for {n} samples: {_FIX}, one per sample")
        return _settle(ids), "id_fn"
    found = find_id_column(batch, n)
    return None if found is None else (_settle(found[0]), found[1])


def find_id_column(batch: Any, n: int) -> tuple[Any, str] | None:
    """Find the sample ids that stand in a batch, as they are; arguments and order as in `find_ids`."""
    for search in (_marked_ids, _named_ids, _image_ids, _shard_keys, _meta_ids):
        found = search(batch)
        if found is not None and _count(found[0]) == n:
            with contextlib.suppress(ValueError):  # not ids after all; the next source may have some
                _settle(found[0])
                return found
    return None


def settled_ids(column: Any, n: int) -> Any | None:
    """What is kept of a column of ids until they are written as text; None where they are not `n` ids."""
    if _count(column) != n:
        return None
    try:
        return _settle(column)
    except ValueError:
        return None


def _settle(ids: Any) -> Any:
    """Read ids that are on the host, or copy those of plain kinds; leave those on a device alone."""
    if isinstance(ids, list) and set(map(type, ids)) == {str}:  # the common case, quickly
        return list(ids)
    if isinstance(ids, Tensor) and ids.ndim == 1 and ids.dtype in _INTEGERS and ids.device.type == "cpu":
        return ids.detach().clone()
    parts = ids if isinstance(ids, (list, tuple)) else [ids]
    if any(isinstance(part, Tensor) and part.device.type != "cpu" for part in parts):
        return ids
    return as_id_list(ids)


def _count(ids: Any) -> int | None:
    if isinstance(ids, (Tensor, np.ndarray)):
        return (int(ids.shape[0]) if ids.ndim else 1) if ids.ndim < 2 else None
    if isinstance(ids, (str, bytes, int)):
        return 1
    return len(ids) if hasattr(ids, "__len__") else None


def _get(part: Any, key: str) -> Any:
    """Read a key of a mapping or an attribute of an object; None where it is not there."""
    if isinstance(part, Mapping):
        return part.get(key)
    if part is None or isinstance(part, (Tensor, np.ndarray, str, bytes, int, float, list)):
        return None
    if isinstance(part, tuple) and key not in getattr(part, "_fields", ()):
        return None
    return getattr(part, key, None)


def _parts(batch: Any) -> list[Any]:
    """Return the batch and, for a tuple or list of columns, its elements."""
    return [batch, *batch] if isinstance(batch, (tuple, list)) else [batch]


def _column(part: Any, key: str) -> Any:
    """Return the values of `key` over a batch: a mapping's column, or one value of each sample of a list."""
    if isinstance(part, (list, tuple)) and part and not hasattr(part, "_fields"):
        values = [_get(sample, key) for sample in part]
        return None if any(value is None for value in values) else values
    return _get(part, key)


def _marked_ids(batch: Any) -> tuple[Any, str] | None:
    """Find what `WithInputId` put there, under whatever key."""
    for part in _parts(batch):
        columns = list(part.values()) if isinstance(part, Mapping) else [_column(part, ID_KEY)]
        for column in columns:
            if isinstance(column, (list, tuple)) and column and isinstance(column[0], DatasetIndexId):
                return column, "dataset_index"
            if isinstance(column, DatasetIndexId):
                return [column], "dataset_index"
    return None


def _named_ids(batch: Any) -> tuple[Any, str] | None:
    for part in _parts(batch):
        column = _column(part, ID_KEY)
        if column is not None:
            return column, ID_KEY
    return None


def _image_ids(batch: Any) -> tuple[Any, str] | None:
    parts = _parts(batch)
    targets = [_get(part, key) for part in parts for key in _TARGET_KEYS]
    for part in (*parts, *targets):
        column = _column(part, "image_id")
        if column is not None:
            return column, "image_id"
    return None


def _shard_keys(batch: Any) -> tuple[Any, str] | None:
    """Find the keys of samples in WebDataset's shards; Hugging Face's streams of them have them, too."""
    for part in _parts(batch):
        column = _column(part, SHARD_KEY)
        if column is not None:
            return column, SHARD_KEY
    return None


def _meta_ids(batch: Any) -> tuple[Any, str] | None:
    """Find the ids of OpenMMLab's data samples (``metainfo``), of older metas, or OpenPCDet's frames."""
    parts = _parts(batch)
    files = _get(batch, "im_file")  # Ultralytics
    if isinstance(files, (list, tuple)):
        return files, "metainfo"
    for samples in (*(_unpacked(_column(part, key)) for part in parts for key in _META_COLUMNS), *parts):
        if not isinstance(samples, (list, tuple)) and not _is_objects(samples):
            continue
        metas = [sample if isinstance(sample, Mapping) else _get(sample, "metainfo") for sample in samples]
        for name in _META_KEYS:
            column = _column(metas, name)
            if column is not None:
                return column, "metainfo"
    frames = _get(batch, "frame_id")  # OpenPCDet
    return None if frames is None else (frames, "metainfo")


def _is_objects(samples: Any) -> bool:
    return isinstance(samples, np.ndarray) and samples.dtype == np.dtype(object) and samples.ndim == 1


def _unpacked(samples: Any) -> Any:
    """Metas out of mmcv's DataContainers and the outer list of test-time augmentation."""
    while True:
        if hasattr(samples, "cpu_only") and hasattr(samples, "data"):
            samples = samples.data
        elif isinstance(samples, (list, tuple)) and len(samples) == 1 and isinstance(samples[0], list):
            samples = samples[0]
        elif isinstance(samples, (list, tuple)) and len(samples) == 1 and hasattr(samples[0], "cpu_only"):
            samples = samples[0].data
        else:
            return samples


def base_id(dataset: Any, index: Any) -> str:
    """Name a sample by its place in the innermost dataset.

    ``Subset`` is followed to its base, a corrected data set too, ``ConcatDataset`` adds the number of the
    part, `WithInputId` its prefix, the OpenMMLab wrappers (repeat, class balance) are followed too. Datasets
    of other kinds are taken for innermost.

    Args:
        dataset: a map-style dataset, possibly nested.
        index: an index into it.

    Returns:
        ``"17"``, or ``"k/17"`` for part k of a concatenation.

    Raises:
        IndexError: the index is outside the dataset.

    Examples:
        >>> whole = list("abcdef")
        >>> base_id(Subset(whole, [4, 2]), 1), base_id(ConcatDataset([whole, Subset(whole, [5])]), 6)
        ('2', '1/5')
    """
    if isinstance(dataset, ConcatDataset):
        return _concat_id(dataset, int(index))
    inner = _inner_place(dataset, index)
    if inner is not None:
        name = base_id(*inner)
        prefix = dataset.prefix if isinstance(dataset, WithInputId) else None
        return name if prefix is None else f"{prefix}/{name}"
    if isinstance(index, (str, bytes)):
        return _as_id(index)
    position = int(index)
    if position < 0 and hasattr(dataset, "__len__"):
        position += len(dataset)
    return str(position)


def base_ids(dataset: Any, indices: Sequence[Any]) -> list[str]:
    """`base_id` of each index; quick where all are plain places in a data set or a `Subset` of one.

    >>> base_ids(Subset(list("abcdef"), [4, 2]), (1, 0)), base_ids([7, 8], [-1])
    (['2', '4'], ['1'])
    """
    places: Any = indices
    while type(dataset) is Subset and _are_places(places):
        places = [dataset.indices[place] for place in places]
        dataset = dataset.dataset
    if not isinstance(dataset, ConcatDataset) and not _leads_on(dataset) and _are_places(places):
        return list(map(str, places))
    return [base_id(dataset, place) for place in places]


def _are_places(indices: Sequence[Any]) -> bool:
    return set(map(type, indices)) == {int} and min(indices) >= 0


def _leads_on(dataset: Any) -> bool:
    """Whether `_inner_place` may find a data set in this one."""
    kind = type(dataset)
    return (
        isinstance(dataset, (WithInputId, Subset))
        or hasattr(kind, "mld_inner")
        or hasattr(kind, "_get_ori_dataset_idx")
    )


def _inner_place(dataset: Any, index: Any) -> tuple[Any, Any] | None:
    """Return (dataset, index) one step further in, or None for an innermost dataset."""
    if isinstance(dataset, WithInputId):
        return dataset.dataset, index
    ours = getattr(type(dataset), "mld_inner", None)  # a corrected data set (mld_core.review)
    if ours is not None:
        place: tuple[Any, Any] = ours(dataset, index)
        return place
    if isinstance(dataset, Subset):
        return dataset.dataset, dataset.indices[int(index)]
    original = getattr(type(dataset), "_get_ori_dataset_idx", None)
    if original is not None and hasattr(
        dataset, "dataset"
    ):  # OpenMMLab's RepeatDataset, ClassBalancedDataset
        return dataset.dataset, original(dataset, int(index))
    return None


def _concat_id(dataset: "ConcatDataset[Any]", index: int) -> str:
    position = index + len(dataset) if index < 0 else index
    if not 0 <= position < len(dataset):
        raise IndexError(f"index {index} is outside a dataset of {len(dataset)} samples")
    part = bisect_right(dataset.cumulative_sizes, position)
    inner = dataset.datasets[part]
    name = base_id(inner, position - (dataset.cumulative_sizes[part - 1] if part else 0))
    # A prefix names the part already.
    return name if isinstance(inner, WithInputId) and inner.prefix is not None else f"{part}/{name}"


class WithInputId(Dataset[Any]):
    """Adds each sample's id (its index in the innermost dataset) to the sample.

    Put it inside: wrap the base dataset first, then ``Subset``, ``ConcatDataset`` and the like
    (``Subset`` and ``ConcatDataset`` inside are followed as well). Two datasets of one concatenation need
    a prefix each.

    A sample that is a mapping gets the key; a tuple or list gets one more element ``{"input_id": id}`` at
    its end; anything else becomes the pair ``(sample, {"input_id": id})``. So the training step takes one
    more element. The id is a str: it stays on the host, and collators that keep only numbers drop it.

    Args:
        dataset: a map-style dataset.
        key: the name under which the id is put.
        prefix: put before the id: ``"coco"`` gives ``"coco/17"``.

    Raises:
        ValueError: the dataset has no indices to make ids from.

    Examples:
        >>> WithInputId([(0.5, 1), (0.7, 0)], prefix="toy")[1]
        (0.7, 0, {'input_id': 'toy/1'})
    """

    def __init__(self, dataset: Any, key: str = ID_KEY, prefix: str | None = None) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                f"WithInputId needs a map-style dataset (__getitem__), got {type(dataset).__name__}; put an "
                f"{key!r} into each sample yourself"
            )
        self.dataset = dataset
        self.key = key
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._with_id(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """Fetch several samples; through the dataset's own batched fetch where it has one."""
        fetch = getattr(self.dataset, "__getitems__", None)
        samples = fetch(indices) if fetch is not None else [self.dataset[index] for index in indices]
        return [self._with_id(sample, index) for sample, index in zip(samples, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        # Pickling and copying ask a bare instance for dunder names: not to be looked up in the dataset.
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__dict__["dataset"], name)

    def _with_id(self, sample: Any, index: Any) -> Any:
        name = DatasetIndexId(base_id(self, index))
        if isinstance(sample, dict):
            copy = sample.copy()
            copy[self.key] = name
            return copy
        if isinstance(sample, Mapping):
            return {**sample, self.key: name}
        extra = {self.key: name}
        if isinstance(sample, tuple):
            return (*sample, extra)
        return [*sample, extra] if isinstance(sample, list) else (sample, extra)
