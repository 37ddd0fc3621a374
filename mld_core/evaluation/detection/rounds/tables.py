"""What the rounds found about a pass: its unit table, and the rows, facts and notes of a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mld_core.evaluation.analysis.issue_tables import notes_of, plain_facts
from mld_core.evaluation.analysis.stages import Split, StageOutput
from mld_core.evaluation.analysis.units import unit_ids
from mld_core.evaluation.classification.rounds.block import SAMPLE
from mld_core.evaluation.classification.rounds.scoring import Fits
from mld_core.evaluation.classification.rounds.tables import category_cells, facts_of, regions_of
from mld_core.evaluation.codes.diagnosis import Diagnosis
from mld_core.evaluation.detection.labels import NOT_IN_ROUNDS
from mld_core.evaluation.detection.profile import Told
from mld_core.evaluation.detection.rounds.kept import Judging
from mld_core.evaluation.detection.rounds.scoring import FRAME, Scored
from mld_core.evaluation.detection.stage import NONE_JUDGED, FrameErrors, named_background
from mld_core.evaluation.engine.passes import unit_file
from mld_core.evaluation.metrics.boxes import Floats
from mld_core.evaluation.results.store import ResultStore

LEFT_OUT = (
    f"cells of boxes stand for neighbours, and fits are made on at most {SAMPLE:,} judged boxes",
    "no list of a unit's neighbours, and no neighbours in the train split",
    "no 95 % intervals, no metadata slices, no other epochs: nothing is said of what they agree on",
    "missed truths have no miss_proba",
    "suspicion ranks boxes that found nothing by their scores alone",
    "metrics of error probabilities are from 65,536-bin histograms of them, but that of frames",
    "regions are named by their first confusion; layers share their cells",
)
"""What an evaluation of boxes of any kind in rounds does not compute, in words."""


def write_units(parts: Path, target: Path, proba: Floats | None) -> int:
    """One unit table from those of the parts, in the order that it has in memory.

    Args:
        parts: Their folder.
        target: The table.
        proba: (F,) probability of each frame to hold an error, or None.

    Returns:
        How many rows it has; without any there is no table.
    """
    files = sorted(parts.glob("*.parquet"))
    if not files:
        return 0
    schema = pq.read_schema(files[0])
    own = pa.schema([one for one in schema if one.name != FRAME])
    done = 0
    with unit_file(target, own) as writer:
        for kind in ("pred", "gt"):
            for table in _units_of(files, kind):
                frame = np.asarray(table[FRAME])
                made = _set(table, "unit_id", unit_ids(done, len(table)))
                if proba is not None:
                    made = _set(made, "frame_error_proba", pa.array(proba[frame], pa.float32()))
                writer.write_table(made.select(own.names))
                done += len(table)
    return done


def _units_of(files: list[Path], kind: str) -> Iterator[pa.Table]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=65_536):
                table = pa.Table.from_batches([batch])
                found = table.filter(pc.equal(table["unit_kind"], kind))
                if len(found):
                    yield found


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), values)


def output_of(
    split: Split,
    fits: Fits | None,
    found: Scored,
    judging: Judging,
    proba: Floats | None,
    results: ResultStore,
    told: Told | None,
) -> StageOutput:
    """What the rounds found of a split; its unit table is there.

    Args:
        split: The split.
        fits: What was fitted; None where no kept prediction is judged.
        found: By the last round.
        judging: By what parts are judged.
        proba: (F,) probability of each frame to hold an error, or None.
        results: Where the result goes.
        told: What the kind of boxes gathered of the pass, or None.
    """
    frames = pa.concat_tables(found.frames)
    facts: dict[str, Any] = {"labeled": split.labeled, "other_epochs": 0}
    facts["score_thresholds"] = [round(float(value), 6) for value in judging.thresholds]
    registry = judging.profile.registry()
    notes = [f"evaluated in rounds: {what}" for what in (*LEFT_OUT, *judging.profile.not_in_rounds)]
    metrics: dict[str, Any] = {}
    categories: dict[str, Any] = {"counts": split.labeled}
    tables: dict[str, Any] = {}
    if fits is not None and found.outcome is not None and proba is not None:
        frames = _set(frames, "frame_error_proba", pa.array(proba))
        metrics = {
            **found.outcome.metrics(),
            "error_proba_source": fits.estimator.source,
            "det_error_proba_auroc": found.det.auroc(),
            "cls_error_proba_auroc": found.cls.auroc(),
            "frame_error_proba_auroc": FrameErrors.merge(found.errors).auroc(proba),
        }
        categories |= category_cells(fits, found.outcome)
        facts |= plain_facts(facts_of(fits, found.outcome))
        notes += notes_of(
            split, fits.estimator, fits.used, fits.density, found.absent, known=(NOT_IN_ROUNDS,)
        )
        tables["regions"] = _regions(split, fits, found, results, registry)
    else:
        notes.append(NONE_JUDGED)
    tables["frames"] = frames
    facts["not_computable"] = {code: found.absent[code] for code in sorted(found.absent)}
    facts["code_counts"] = {one.code: found.codes[one.code] for one in registry if one.code in found.codes}
    if told is not None:
        metrics |= told.metrics
        notes += told.notes
        facts |= plain_facts(told.facts(frames["input_id"].to_pylist()))
    return StageOutput({}, metrics, categories, facts, tuple(notes), tables)


def _regions(
    split: Split, fits: Fits, found: Scored, results: ResultStore, registry: Sequence[Diagnosis[Any]]
) -> list[dict[str, Any]]:
    assert found.outcome is not None
    background = fits.split.n_class - 1
    rows = regions_of(split, fits, found.outcome, results, registry)
    return [
        {
            **row,
            "label": named_background(row["label"], background),
            "top_classes": [one for one in row["top_classes"] if one < background],
        }
        for row in rows
    ]
