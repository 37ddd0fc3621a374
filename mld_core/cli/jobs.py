"""`mld jobs`: the evaluations at a team's service."""

from __future__ import annotations

from typing import Annotated

import typer

from mld_core.cli.common import JsonOption, clear_errors
from mld_core.cli.output import emit, note
from mld_core.cli.source import client_of, the_service

_COLUMNS = ("job_id", "model", "version", "state", "progress", "stage", "created_at", "finished_at", "reason")

jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@jobs.callback()
def jobs_group() -> None:
    """List and cancel the evaluations of your organization at the service.

    \b
    Examples:
      mld jobs list
      mld jobs list --state queued
      mld jobs cancel job_0123456789abcdef01234567
    """  # noqa: D301  click reads the mark


@jobs.command("list", short_help="Evaluations, newest first.")
def jobs_list(
    *,
    state: Annotated[
        str | None,
        typer.Option(help="queued, running, done, failed or cancelled. Default: all.", show_default=False),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List evaluations, newest first.

    \b
    Examples:
      mld jobs list --state running --json
    """  # noqa: D301  click reads the mark
    with clear_errors():
        client = client_of(the_service())
        query = {"limit": most, **({"state": state} if state else {})}
        items = client.json("GET", "/v1/jobs", params=query)["items"]
        names = {one: client.json("GET", f"/v1/runs/{one}") for one in {item["run_id"] for item in items}}
    rows = []
    for item in items:
        run = names[item["run_id"]]
        rows.append({**item, "model": run["model_name"], "version": run["version_name"]})
    emit(rows, _COLUMNS, as_json=as_json)


@jobs.command("cancel", short_help="End evaluations, queued or running.")
def jobs_cancel(job_id: Annotated[list[str], typer.Argument(help="As `mld jobs list` shows them.")]) -> None:
    """Cancel evaluations; one that is finished stays as it is.

    \b
    Examples:
      mld jobs cancel job_0123456789abcdef01234567
    """  # noqa: D301  click reads the mark
    with clear_errors():
        client = client_of(the_service())
        for one in job_id:
            found = client.json("DELETE", f"/v1/jobs/{one}")
            note(f"{one} is {found['state'] if found['state'] != 'running' else 'being cancelled'}")
