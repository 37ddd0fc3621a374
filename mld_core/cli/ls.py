"""`mld ls`: what is in the store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mld_core.cli.common import JsonOption, StoreOption, choose_run, clear_errors, open_store
from mld_core.cli.output import emit, emit_frame
from mld_core.cli.remote import PASS_COLUMNS as REMOTE_PASS_COLUMNS
from mld_core.cli.remote import RUN_COLUMNS as REMOTE_RUN_COLUMNS
from mld_core.cli.remote import client_of, newest_run, pass_rows, remote_runs, run_row, the_service
from mld_core.evaluation.engine.passes import rows_lost
from mld_core.evaluation.evaluator import Evaluator, find_run
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.attempts import list_passes
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

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
      mld ls --remote                 the runs of your team's service
      mld ls | cut -f1,2              names only (tab-separated in a pipe)
    """  # noqa: D301  click reads the mark
    with clear_errors():
        if remote:
            _remote(model, version, results=results, as_json=as_json)
            return
        opened = open_store(store)
        if results:
            run = choose_run(opened, model, version)
            found = Evaluator(run.model_name, run.version_name, store=opened.root).list_results()
            emit_frame(found, as_json=as_json, title=f"Results of {run.model_name} {run.version_name}")
        elif version is not None and model is not None:
            run = find_run(opened, model, version)
            emit(_passes(opened, run), PASS_COLUMNS, as_json=as_json, title=f"{model} {version}")
        else:
            if model is not None:
                choose_run(opened, model, None)
            runs = [run for run in opened.runs() if model in {None, run.model_name}]
            emit([_run(opened, run) for run in runs], RUN_COLUMNS, as_json=as_json, title=str(opened.root))


def _remote(model: str | None, version: str | None, *, results: bool, as_json: bool) -> None:
    service = the_service()
    client = client_of(service)
    if results:
        run = newest_run(client, model, version)
        evaluator = Evaluator(run.model_name, run.version_name, service.url, service.api_key)
        title = f"Results of {run.model_name} {run.version_name}"
        emit_frame(evaluator.list_results(), as_json=as_json, title=title)
        return
    runs = remote_runs(client, model, version)
    if version is not None:
        rows = pass_rows(client, str(runs[0]["run_id"]))
        emit(rows, REMOTE_PASS_COLUMNS, as_json=as_json, title=f"{model} {version}")
    else:
        emit([run_row(one) for one in runs], REMOTE_RUN_COLUMNS, as_json=as_json, title=client.url)


def _run(store: Store, run: RunKey) -> dict[str, Any]:
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
    return [
        {
            "dataset": one.key.dataset_type,
            "epoch": one.key.n_epoch,
            "pass": one.key.pass_no,
            "rows": one.n_rows,
            "state": "sealed" if one.sealed else "partial",
            "sealed_at": one.sealed_at,
            "rows_lost": rows_lost(one),
            "torn_parts": len(one.torn),
            "attempt": one.attempt,
        }
        for one in select(store, run, n_epoch=None, passes="all")
    ]
