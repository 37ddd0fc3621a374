"""`mld compare`: two results side by side, or up to eleven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mld_core.cli.common import FAILED, DatasetOption, JsonOption, ModelOption, StoreOption, clear_errors
from mld_core.cli.output import emit_frame, emit_json, note, on_terminal, rows_of
from mld_core.cli.source import source

if TYPE_CHECKING:
    import pandas as pd

    from mld_core.evaluation.results.compare import Comparison
    from mld_core.evaluation.results.many import Comparisons

TERMINAL_ROWS = 20
LEVEL = 0.05


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Before: a version, MODEL/VERSION or a result name.")],
    b: Annotated[
        list[str], typer.Argument(metavar="B...", help="After: the same; several are each compared with A.")
    ],
    *,
    model: ModelOption = None,
    dataset: DatasetOption = None,
    changed: Annotated[bool, typer.Option("--changed", help="List the fixed and regressed units.")] = False,
    fail_on_regression: Annotated[
        bool,
        typer.Option(
            "--fail-on-regression",
            help="Exit with 1 where significantly more units regressed than were fixed.",
        ),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare results: metrics with intervals, fixed and regressed units, category transitions.

    A version stands for its newest result. Samples are paired by content hash or id; of detections the true
    boxes, found or missed. Categories of both sides are cut at the thresholds of A. `mld report A B` shows
    the same as a page, with images. Of several B each is compared with A: fixed and regressed with p-values
    corrected for their number (Holm), what all get wrong, some, or none, and each metric with what moved.
    Where MLD_API_ENDPOINT is set, results of that service (--store DIR: of a store here).

    \b
    Examples:
      mld compare v2 v3                          newest results of two versions of the newest model
      mld compare resnet18/v2 resnet50/v1
      mld compare v1 v2 v3 v4                    each with v1, and all with one another
      mld compare v2 v3 --dataset val --changed  which units were fixed, which regressed
      mld compare v2 v3 --fail-on-regression     for a script: 1 where it got significantly worse

    \b
    Exit codes: 0 compared; 1 regressed (only with --fail-on-regression) or failed; 2 not understood; 3 not
    found.
    """  # noqa: D301  click reads the mark
    with clear_errors():
        results = source(store)
        before, after = results.find(a, model), [results.find(one, model) for one in b]
        if len(after) == 1:
            found = before.compare(after[0], dataset)
            print_comparison(found, changed=changed, as_json=as_json)
            worse = regressed_datasets(found)
        else:
            several = before.compare(after, dataset)
            print_comparisons(several, changed=changed, as_json=as_json)
            lines = several.units[several.units["better"] < 0].to_dict("records")
            worse = [f"{one['dataset']} of {one['result']}" for one in lines]
    if fail_on_regression and worse:
        note(f"mld: significantly more units regressed than were fixed in {', '.join(worse)}")
        raise typer.Exit(FAILED)


def regressed_datasets(found: Comparison) -> list[str]:
    """Datasets where more units regressed than were fixed, significantly at 5 % (exact McNemar)."""
    units = found.units
    worse = (units["n_regressed"] > units["n_fixed"]) & (units["mcnemar_p"].astype(float) < LEVEL)
    return [str(name) for name in units.loc[worse.fillna(False), "dataset"]]


def print_comparisons(found: Comparisons, *, changed: bool, as_json: bool) -> None:
    """Print what changed from one result to each of several others."""
    tables = {"units": found.units, "together": found.together, "metrics": found.metrics}
    if as_json:
        lists = {name: rows_of(one) for name, one in tables.items()}
        emit_json({"names": list(found.names), **lists, "changed": rows_of(_all_changed(found))})
        return
    title = f"{found.names[0]} -> {', '.join(found.names[1:])}"
    if changed:
        emit_frame(_all_changed(found), as_json=False, title=title)
        return
    emit_frame(found.units, as_json=False, title=title)
    if not on_terminal():
        return
    from mld_core.evaluation.results.tables import METRIC_COLUMNS

    emit_frame(found.together, as_json=False, title="\nWrong in all results, in some, in none")
    shown = found.metrics[found.metrics["metric"].isin((*METRIC_COLUMNS, "error_rate"))]
    title = "\nMetrics (delta_lo, delta_hi: 95 % interval on paired units, each by itself)"
    emit_frame(shown, as_json=False, title=title)


def _all_changed(found: Comparisons) -> pd.DataFrame:
    import pandas as pd

    tables = [one.changed.assign(place=place, result=one.b) for place, one in enumerate(found.against, 1)]
    return pd.concat(tables, ignore_index=True)


def print_comparison(found: Comparison, *, changed: bool, as_json: bool) -> None:
    """Print a comparison: counts and the main metrics on a terminal or in a pipe, everything as JSON."""
    if as_json:
        told = {name: one for name, one in vars(found).items() if name != "rows"}
        emit_json({name: one if isinstance(one, str) else rows_of(one) for name, one in told.items()})
        return
    if changed:
        emit_frame(found.changed, as_json=False, title=f"{found.a} -> {found.b}")
        return
    emit_frame(found.units, as_json=False, title=f"{found.a} -> {found.b}")
    if not on_terminal():
        return
    from mld_core.evaluation.results.tables import METRIC_COLUMNS

    shown = found.metrics[found.metrics["metric"].isin((*METRIC_COLUMNS, "error_rate"))]
    emit_frame(shown, as_json=False, title="\nMetrics (delta_lo, delta_hi: 95 % interval on paired units)")
    moved = found.transitions[found.transitions["category_a"] != found.transitions["category_b"]]
    moved = moved[moved["counts"] > 0].sort_values("counts", ascending=False, kind="stable")
    if len(moved):
        emit_frame(
            moved.head(TERMINAL_ROWS), as_json=False, title="\nUnits that changed category, most first"
        )
    for title, frame in (("classes", found.classes), ("regions of A", found.regions)):
        sure = frame[frame["bh_sig"].astype(bool)] if len(frame) else frame
        if len(sure):
            emit_frame(sure.head(TERMINAL_ROWS), as_json=False, title=f"\nError rate changed in {title}")
    new = found.codes[found.codes["new"].astype(bool)] if len(found.codes) else found.codes
    if len(new):
        emit_frame(new, as_json=False, title="\nDiagnoses that are new")
