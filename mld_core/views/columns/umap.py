"""Coordinates of a pass by UMAP: made on demand, kept beside its result, a row for each unit.

The axes of PCA come with every result; those of UMAP take seconds to minutes and a package of their own.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.stages import stored_vectors, vector_width
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.results.database import UMAP_AXES, own_axes
from mld_core.evaluation.space.space import fit_space, project
from mld_core.records.format.manifest import tmp_name
from mld_core.records.format.vectors import is_vector
from mld_core.records.read.reader import PassSelection
from mld_core.views.units import PassUnits, spread

INSTALL = 'pip install "ml-debugger[umap]"'
MOST_FITTED = 100_000
"""Units that the map is fitted to; further ones are placed among them."""

LEAST = 8
NEIGHBOURS = 15
_PIECE = 20_000
_ROWS = 65_536

Staged = Callable[[str], AbstractContextManager[Any]]
"""What tells a stage that begins."""


class NoUmapError(ValueError):
    """There is no UMAP of this pass, and why."""


def installed() -> bool:
    """Whether umap-learn is here."""
    return importlib.util.find_spec("umap") is not None


def seconds_of(rows: int) -> int:
    """About how long it takes on one core: importing and compiling, fitting, placing the rest.

    Measured with 64 columns at 500 to 20,000 units (96 s of processor time); by proportion beyond.
    """
    fitted = min(rows, MOST_FITTED)
    return round(25 + 3.8e-3 * fitted + 1e-3 * (rows - fitted))


def make_umap(units: PassUnits, stage: Staged) -> dict[str, Any]:
    """Make the coordinates of a pass and write them beside its result.

    Args:
        units: The pass.
        stage: Told each stage.

    Returns:
        `rows` with coordinates, `fitted`, `seconds`.

    Raises:
        ImportError: The package is missing.
        NoUmapError: The records or the features are.
    """
    if not installed():
        raise ImportError(f"UMAP needs the package umap-learn: {INSTALL}")
    if taken := _taken_names(units):
        raise NoUmapError(taken)
    selection = units.records
    if selection is None:
        raise NoUmapError(
            f"the records of {units.dataset} are gone, or were recorded anew since: evaluate it again"
        )
    begun = time.perf_counter()
    with stage(f"reading features ({units.dataset})"):
        rows = _vector_rows(units, selection)
        points = _points(units, selection, rows)
    placed, fitted = _placed(points, stage)
    made = np.full((units.rows, 2), np.nan, np.float32)
    made[rows >= 0] = placed
    finite = int(np.isfinite(placed).all(axis=1).sum())
    if not finite:
        raise NoUmapError(
            f"UMAP gave no finite coordinates for {units.dataset}: look at its recorded features"
        )
    columns = {"unit_id": units.column("unit_id").cast(pa.string())}
    columns |= {name: pa.array(made[:, at], from_pandas=True) for at, name in enumerate(UMAP_AXES)}
    said = {"rows": finite, "fitted": fitted, "seconds": round(time.perf_counter() - begun, 1)}
    table = pa.table(columns).replace_schema_metadata({name: str(value) for name, value in said.items()})
    beside = units.path.with_name(tmp_name(units.beside.name))
    try:
        pq.write_table(table, beside, compression="zstd")
        beside.replace(units.beside)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return said


def umap_of(units: PassUnits) -> dict[str, Any]:
    """What a page says of the coordinates: whether they are made, to how many fitted, how long it takes."""
    path: Path = units.beside
    told = pq.read_schema(path).metadata if units.axes else {}
    fitted = told.get(b"fitted")
    return {
        "made": bool(told),
        "fitted": None if fitted is None else int(fitted),
        "seconds": seconds_of(units.rows),
        "missing": _taken_names(units)
        or ("" if installed() else f"UMAP needs the package umap-learn: {INSTALL}"),
    }


def _taken_names(units: PassUnits) -> str:
    """Why there can be none beside what the user recorded; empty where there can."""
    own = own_axes(units.path)
    return (
        f"{units.dataset} was recorded with a field {own[0]} of your own, whose name a UMAP would need: "
        "record it under another"
        if own
        else ""
    )


def _vector_rows(units: PassUnits, selection: PassSelection) -> NDArray[np.int64]:
    """(N,) row of each unit among the stored vectors, -1 where it has none, as a missed true box."""
    if units.result.task == "classification":
        return np.arange(units.rows)
    keys = ["unit", "rank_"]
    stored = selection.table("vectors", [*keys, "det_idx"]).to_pandas()
    frames = selection.table("samples", [*keys, "input_id"]).to_pandas()
    stored = stored.assign(row=np.arange(len(stored))).merge(frames, on=keys)
    stored = stored.drop_duplicates(["input_id", "det_idx"])
    own = pd.DataFrame({"input_id": units.texts("input_id"), "det_idx": units.floats("det_idx")})
    found = own.merge(stored[["input_id", "det_idx", "row"]], how="left", on=["input_id", "det_idx"])["row"]
    return found.fillna(-1).to_numpy(np.int64)


def _points(units: PassUnits, selection: PassSelection, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(M, at most 64) the units with vectors in the space that neighbours are looked for in."""
    schema = selection.schema("vectors")
    names = [item.name for item in schema if is_vector(item) and vector_width(selection, item.name)]
    names = [name for name in names if name != "logits"] or names
    there = rows[rows >= 0]
    if not names or not len(there):
        raise NoUmapError(f"{units.dataset} has no recorded features: name a layer at the recorder")
    if len(there) < LEAST:
        raise NoUmapError(
            f"{units.dataset} has {len(there)} units with features: a map needs at least {LEAST}"
        )
    features = {name: _taken(selection, name, there) for name in names}
    workers = Workers(1)
    with workers:
        points = project(fit_space(features, workers), features, workers)
    if not np.ptp(points, axis=0).any():
        raise NoUmapError(
            f"the features of all {len(there):,} units of {units.dataset} are the same: record another layer"
        )
    return points


def _taken(selection: PassSelection, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    order = np.argsort(rows, kind="stable")
    wanted, start = rows[order], 0
    made: NDArray[np.float32] | None = None
    for block in stored_vectors(selection, name, _ROWS):
        first, last = np.searchsorted(wanted, (start, start + len(block)))
        if made is None:
            made = np.zeros((len(rows), block.shape[1]), np.float32)
        made[order[first:last]] = block[wanted[first:last] - start]
        start += len(block)
    assert made is not None
    return made


def _placed(points: NDArray[np.float32], stage: Staged) -> tuple[NDArray[np.float32], int]:
    """(M, 2) coordinates: fitted to at most 100,000 of the points, the others placed among them."""
    from umap import UMAP  # noqa: PLC0415  an extra, and seconds to import

    chosen = spread(len(points), MOST_FITTED)
    # From the axes of PCA on and with a seed: the same on every run, and as like the other map as may be.
    start = points[chosen, :2].copy() if points.shape[1] > 1 else "random"
    neighbours = min(NEIGHBOURS, len(chosen) - 1)
    fitting = UMAP(n_neighbors=neighbours, init=start, random_state=0, n_jobs=1)
    made = np.empty((len(points), 2), np.float32)
    with stage(f"UMAP of {len(chosen):,} units"):
        made[chosen] = fitting.fit_transform(points[chosen])
    others = np.setdiff1d(np.arange(len(points)), chosen, assume_unique=True)
    if len(others):
        with stage(f"placing the other {len(others):,}"):
            for begin in range(0, len(others), _PIECE):
                some = others[begin : begin + _PIECE]
                made[some] = fitting.transform(points[some])
    return made, len(chosen)
