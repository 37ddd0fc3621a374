"""What people said of a split's samples before, held against the labels that were recorded this time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Standing, Subject, Verdict, standing
from mld_core.records.store.verdicts import all_runs

SUSPECTED = "C01"


def standing_of(store: Store, run: RunKey) -> dict[Subject, Standing]:
    """What stands of the samples of a model, whichever version it was said of."""
    told: list[Verdict] = []
    for book in all_runs(store, run.model_name):
        told += book.read()[0]
    return standing(told)


def reviewed(units: Path, dataset: str, found: dict[Subject, Standing]) -> dict[str, Any] | None:
    """How the reviewed samples of a pass fare now; None where none of them is in it.

    Args:
        units: The unit table of the pass.
        dataset: Its split.
        found: What stands.

    Returns:
        `reviewed`, `conflicts`; of the labels said to be wrong `corrected` (recorded with the right one now)
        and how many of these are predicted right (`corrected_right`), and `uncorrected`; of those confirmed
        `confirmed` and how many are suspected still (`confirmed_suspected`); `ambiguous`, `hard`; true boxes
        said to lie elsewhere or to hold nothing (`redrawn`); and the `sentence` that says it.
    """
    own = {one.subject: one for one in found.values() if one.subject.dataset_type == dataset}
    if not own:
        return None
    names = pq.read_schema(units).names
    read = [name for name in ("input_id", "gt", "gt_idx", "is_error", "diagnosis") if name in names]
    ids = pa.array(sorted({subject.input_id for subject in own}), pa.string())
    table = pq.read_table(units, columns=read)
    rows = table.filter(pc.is_in(table["input_id"], ids)).to_pylist()
    made = dict.fromkeys(_COUNTS, 0)
    seen: set[Subject] = set()
    for row in rows:
        subject = Subject(dataset, row["input_id"], row.get("gt_idx"))
        if subject in own and subject not in seen:
            seen.add(subject)
            for name in _says(own[subject], row):
                made[name] += 1
    return {**made, "sentence": _sentence(made)} if seen else None


_COUNTS = (
    *("reviewed", "conflicts", "corrected", "corrected_right", "uncorrected"),
    *("confirmed", "confirmed_suspected", "ambiguous", "hard", "redrawn"),
)


def _says(one: Standing, row: dict[str, Any]) -> list[str]:
    """The counts one reviewed unit adds to."""
    verdict = one.verdict
    if verdict is None:
        return ["reviewed", "conflicts"]
    if verdict.kind == "relabel":
        if row["gt"] != verdict.label:
            return ["reviewed", "uncorrected"]
        return ["reviewed", "corrected"] + ["corrected_right"] * (row["is_error"] is False)
    if verdict.kind == "ok":
        return ["reviewed", "confirmed"] + ["confirmed_suspected"] * (SUSPECTED in (row["diagnosis"] or []))
    return ["reviewed", "redrawn" if verdict.corrects_box else verdict.kind]


def _sentence(made: dict[str, int]) -> str:
    parts = []
    if made["corrected"]:
        right = made["corrected_right"]
        parts.append(
            f"{made['corrected']:,} wrong labels are corrected, {right:,} of them predicted right now"
        )
    if made["uncorrected"]:
        parts.append(f"{made['uncorrected']:,} labels said to be wrong are recorded as they were")
    if made["confirmed"]:
        still = made["confirmed_suspected"]
        parts.append(
            f"{made['confirmed']:,} labels were confirmed"
            + (f", {still:,} are suspected still" * (still > 0))
        )
    if made["conflicts"]:
        parts.append(f"{made['conflicts']:,} are in conflict")
    if made["redrawn"]:
        parts.append(f"{made['redrawn']:,} true boxes were said to lie elsewhere or to hold nothing")
    others = made["ambiguous"] + made["hard"]
    if others:
        parts.append(f"{others:,} are ambiguous or hard")
    return f"Of {made['reviewed']:,} reviewed before: {'; '.join(parts)}."
