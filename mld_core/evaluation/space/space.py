"""The space neighbours are looked for in: recorded layers, made comparable, concatenated and reduced by PCA.

Each layer is centred and scaled to unit mean squared norm; the covariance of the concatenation is streamed
once over the vectors, so that only the projections are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.blocks import Vectors, finite_float32, stored_blocks
from mld_core.evaluation.statistics.folds import hash_uniform

POOLED_WIDTH = 64
LAYER_WIDTH = 32
ROWS = 8_192
FIT_UNITS = 200_000
_STREAM = 601


@dataclass(frozen=True)
class Space:
    """A fitted space.

    Attributes:
        names: Aliases of the layers, earliest first.
        mean: (D,) float32 mean of the concatenated layers.
        scale: (D,) float32 factor of each column: one over the root mean squared norm of its layer.
        pooled: (D, <= 64) float32 principal axes of all layers together.
        layers: Alias -> (D_l, <= 32) float32 principal axes of that layer alone.
    """

    names: tuple[str, ...]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    pooled: NDArray[np.float32]
    layers: Mapping[str, NDArray[np.float32]]

    def columns(self, name: str) -> slice:
        """Where a layer stands in the concatenation."""
        start = 0
        for other in self.names:
            width = len(self.layers[other])
            if other == name:
                return slice(start, start + width)
            start += width
        raise KeyError(name)


Block = tuple[int, tuple[NDArray[Any], ...]]
"""The first row of a block, and a piece of every layer as it is stored."""


def layer_blocks(features: Mapping[str, Vectors], names: tuple[str, ...]) -> Iterator[Block]:
    """Walk over the layers in blocks of 8,192 rows."""
    walks = [stored_blocks(features[name], ROWS) for name in names]
    for index, pieces in enumerate(zip(*walks, strict=True)):
        yield index * ROWS, pieces


def _joined(pieces: tuple[NDArray[Any], ...]) -> NDArray[np.float32]:
    wide = [finite_float32(piece) for piece in pieces]
    return wide[0] if len(wide) == 1 else np.concatenate(wide, axis=1)


def fit_space(features: Mapping[str, Vectors], workers: Workers) -> Space:
    """Stream the covariance and find the axes; beyond 200,000 units of about as many, drawn by a hash.

    Args:
        features: Alias -> (N, D) vectors, earliest layer first.
        workers: Open pool.

    Returns:
        The space; at most min(64, D, N - 1) pooled axes, signed so that the largest-magnitude entry is
        positive.
    """
    names = tuple(features)
    blocks = layer_blocks(features, names)
    first = next(blocks, None)
    if first is None:
        raise ValueError("features have 0 rows: expected at least one unit")
    shift = _joined(first[1]).mean(axis=0)
    share = FIT_UNITS / features[names[0]].shape[0]

    def moments(block: Block) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        start, pieces = block
        if share < 1:
            kept = hash_uniform(np.arange(start, start + len(pieces[0]), dtype=np.uint64), _STREAM) < share
            pieces = tuple(piece[kept] for piece in pieces)
        moved = _joined(pieces) - shift
        return moved.sum(axis=0), moved.T @ moved, len(moved)

    total, gram, rows = (np.asarray(x, np.float64) for x in moments(first))
    for part, square, count in workers.map(moments, blocks):
        total, gram, rows = total + part, gram + square, rows + count
    offset = total / rows
    covariance = gram / rows - np.outer(offset, offset)
    return _space_of(
        names, [features[name].shape[1] for name in names], shift + offset, covariance, int(rows)
    )


def _space_of(
    names: tuple[str, ...],
    widths: list[int],
    mean: NDArray[np.float64],
    covariance: NDArray[np.float64],
    rows: int,
) -> Space:
    scale = np.empty(len(mean))
    stops = np.cumsum(widths)
    for stop, width in zip(stops, widths, strict=True):
        power = float(np.diag(covariance)[stop - width : stop].sum())
        scale[stop - width : stop] = 1 / np.sqrt(power) if power > 0 else 1.0
    scaled = covariance * np.outer(scale, scale)
    layers = {
        name: _axes(scaled[stop - width : stop, stop - width : stop], min(LAYER_WIDTH, max(rows - 1, 1)))
        for name, stop, width in zip(names, stops, widths, strict=True)
    }
    pooled = _axes(scaled, min(POOLED_WIDTH, max(rows - 1, 1)))
    return Space(names, mean.astype(np.float32), scale.astype(np.float32), pooled, layers)


def _axes(covariance: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Leading eigenvectors as columns, largest eigenvalue first."""
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :count]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return np.asarray(vectors * np.where(signs == 0, 1, signs), dtype=np.float32)


def project(
    space: Space, features: Mapping[str, Vectors], workers: Workers, *, layer: str | None = None
) -> NDArray[np.float32]:
    """Coordinates of vectors in the space.

    Args:
        space: The space, fitted on this or another split.
        features: Alias -> (N, D) vectors with the space's aliases and widths.
        workers: Open pool.
        layer: An alias for that layer's own axes, None for the pooled ones.

    Returns:
        (N, <= 64) float32, or (N, <= 32) of a layer.

    Raises:
        ValueError: A layer is missing or has another width.
    """
    names = space.names if layer is None else (layer,)
    for name in names:
        width = features[name].shape[1] if name in features else None
        if width != len(space.layers[name]):
            raise ValueError(
                f"layer {name!r} has width {width} here and {len(space.layers[name])} in the fitted space: "
                "record the same layers in both splits"
            )
    where = slice(None) if layer is None else space.columns(layer)
    mean = space.mean[where]
    axes = (space.pooled if layer is None else space.layers[layer]) * space.scale[where, None]
    made = np.empty((features[names[0]].shape[0], axes.shape[1]), np.float32)

    def one(block: Block) -> None:
        start, pieces = block
        made[start : start + len(pieces[0])] = (_joined(pieces) - mean) @ axes

    workers.each(one, layer_blocks(features, names))
    return made
