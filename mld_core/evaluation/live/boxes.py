"""The same of a pass of detections: its frames are matched whole up to a size, and some of them analysed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mld_core.evaluation.analysis.stages import Split, SplitGroup
from mld_core.evaluation.detection.method import measure_boxes
from mld_core.evaluation.detection.profile import IMAGES
from mld_core.evaluation.detection.stage import BoxAnalysis
from mld_core.evaluation.detection3d.profile import ROADS
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.live.measuring import FIT_ROWS, OPTIONS, Analysed, findings
from mld_core.evaluation.live.sampled import sample_frames
from mld_core.records.read.reader import PassSelection

BOX_ROWS: Final = 100_000
"""Recorded boxes up to which a pass is matched whole while the training goes on."""


def analyse_boxes(
    selection: PassSelection, info: Mapping[str, Any], engine: Workers, folder: Path
) -> Analysed:
    """Metrics of all frames, or of a share of them, and the analysis of so many that it costs the same."""
    recorded = sum(len(batch) for batch in selection.batches("detections", ["score"]))
    if selection.n_rows == 0 or recorded == 0:
        return Analysed({}, None, ("no box is recorded",))
    profile = ROADS if selection.task == "detection3d" else IMAGES
    notes: list[str] = []

    def measured(pass_: PassSelection, name: str) -> tuple[Split, SplitGroup, dict[str, Any]]:
        # Without an epoch the analysis does not look at the ones before, of which there are more and more.
        split = Split(selection.key.dataset_type, None, pass_, folder / name)
        group = SplitGroup((split,), OPTIONS)
        return split, group, measure_boxes(group, dict(info), engine, profile)[0].metrics

    share = BOX_ROWS / recorded
    split, group, metrics = measured(sample_frames(selection, share), "frames")
    if share < 1:
        notes.append(f"metrics are of {split.selection.n_rows} of {selection.n_rows} frames")
    if split.rows > FIT_ROWS:
        some = sample_frames(selection, min(1.0, share) * FIT_ROWS / split.rows)
        split, group, _ = measured(some, "some")
    found = BoxAnalysis()(split, group, engine)
    facts, frames, whole = found.facts, split.selection.n_rows, selection.n_rows
    scale = whole / max(frames, 1)
    counts = facts.get("code_counts", {})
    metrics.pop("n_epoch", None)
    if "n_hat" not in facts:
        return Analysed(metrics, None, (*notes, *found.notes))
    analysis = {
        "rows": split.rows,
        "of": round(scale * split.rows),
        "metrics": {name: value for name, value in found.metrics.items() if name.startswith("error_proba")},
        "categories": {name: value for name, value in found.categories.items() if name != "counts"},
        "wrong_labels": round(scale * facts["n_hat"]),
        "findings": findings(counts, facts.get("sure_counts", counts), scale),
    }
    return Analysed(metrics, analysis, tuple(notes))
