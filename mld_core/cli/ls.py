"""`mld ls`: what is in the store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mld_core.cli.common import JsonOption, StoreOption, clear_errors, open_store, runs_of
from mld_core.cli.output import emit, emit_frame
from mld_core.cli.source import ServiceSource, Source, StoreSource, the_service
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey, Store

RUN_COLUMNS = ("model", "version", "task", "created_at", "datasets", "epochs", "results")
PASS_COLUMNS = (
    "dataset",
    "epoch",
    "pass",
    "rows",
    "state",
    "sealed_at",
    "rows_lost",
    "torn_parts",
    "attempt",
)
REMOTE_RUN_COLUMNS = ("model", "version", "task", "created_at", "updated_at", "tags")
REMOTE_PASS_COLUMNS = ("dataset", "epoch", "pass", "rows", "state", "ranks", "attempt")


def ls(
    model: Annotated[str | None, typer.Argument(help="Only this model.", show_default=False)] = None,
    version: Annotated[
        str | None, typer.Argument(help="List the passes of this version.", show_default=False)
    ] = None,
    *,
    results: Annotated[bool, typer.Option("--results", help="List evaluation results instead.")] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="What the service at MLD_API_ENDPOINT holds.")
    ] = False,
    tag: Annotated[
        str | None, typer.Option(metavar="TAG", help="With --remote: runs with this tag.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=1000, help="With --remote: at most so many runs.")] = 200,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the passes of a run, or its results.

    With MODEL and VERSION, one line for each recorded pass: its rows and whether every rank finished it
    (state "sealed") or some did not ("partial").

    \b
    Examples:
      mld ls                          all runs
      mld ls resnet18                 the versions of a model
      mld ls resnet18 v3              the passes of a run
      mld ls resnet18 v3 --results    its evaluation results
      mld ls --remote                 the newest runs of your team's service
      mld ls --remote --tag baseline  those with a tag
      mld ls | cut -f1,2              names only (tab-separated in a pipe)
    """  # noqa: D301  click reads the mark
    with clear_errors():
        if remote:
            place = ServiceSource(the_service())
            if results:
                _results(place, place.newest(model, version), as_json=as_json)
            else:
                _remote(place, model, version, tag=tag, most=most, as_json=as_json)
            return
        opened = open_store(store, reads=True)
        if results:
            here = StoreSource(opened)
            _results(here, here.run(model, version), as_json=as_json)
            return
        runs = runs_of(opened, model, version)
        if version is not None:
            emit(_passes(opened, runs[0]), PASS_COLUMNS, as_json=as_json, title=f"{model} {version}")
        else:
            emit([_run(opened, run) for run in runs], RUN_COLUMNS, as_json=as_json, title=str(opened.root))


def _results(place: Source, run: RunKey, *, as_json: bool) -> None:
    found = place.evaluator(run).list_results()
    emit_frame(found, as_json=as_json, title=f"Results of {run.model_name} {run.version_name}")


def _remote(
    place: ServiceSource, model: str | None, version: str | None, *, tag: str | None, most: int, as_json: bool
) -> None:
    runs = place.runs(model, version, tag=tag, most=most)
    if version is not None:
        rows = [_remote_pass(one) for one in place.client.pages(f"/v1/runs/{runs[0]['run_id']}/passes")]
        emit(rows, REMOTE_PASS_COLUMNS, as_json=as_json, title=f"{model} {version}")
        return
    for one in runs:
        one |= {"model": one["model_name"], "version": one["version_name"]}
        one["task"] = (one.get("info") or {}).get("task")
    emit(runs, REMOTE_RUN_COLUMNS, as_json=as_json, title=place.client.url)


def _remote_pass(one: dict[str, Any]) -> dict[str, Any]:
    """A pass of a service as a row: the newest attempt at it that all ranks sealed."""
    attempts = one.get("attempts") or [{}]
    chosen = next((item for item in reversed(attempts) if item.get("sealed")), attempts[-1])
    rows, state = (chosen.get("rows") or {}).get("samples"), "sealed" if one.get("sealed") else "partial"
    place = (one["dataset_type"], one["n_epoch"], one["pass_no"])
    made = (*place, rows, state, chosen.get("ranks"), chosen.get("attempt"))
    return dict(zip(REMOTE_PASS_COLUMNS, made, strict=True))


def _run(store: Store, run: RunKey) -> dict[str, Any]:
    from mld_core.records.format.attempts import list_passes

    keys = list(list_passes(store, run))
    info = store.run_info(run)
    return {
        "model": run.model_name,
        "version": run.version_name,
        "task": info.get("task"),
        "created_at": info.get("created_at"),
        "datasets": list(dict.fromkeys(key.dataset_type for key in keys)),
        "epochs": len({key.n_epoch for key in keys}),
        "results": len(ResultStore(store, run).all()),
    }


def _passes(store: Store, run: RunKey) -> list[dict[str, Any]]:
    from mld_core.evaluation.engine.passes import rows_lost
    from mld_core.records.read.reader import select

    rows = []
    for one in select(store, run, n_epoch=None, passes="all"):
        place = (one.key.dataset_type, one.key.n_epoch, one.key.pass_no)
        state = "sealed" if one.sealed else "partial"
        made = (*place, one.n_rows, state, one.sealed_at, rows_lost(one), len(one.torn), one.attempt)
        rows.append(dict(zip(PASS_COLUMNS, made, strict=True)))
    return rows
