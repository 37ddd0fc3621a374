"""`mld sync`: from the local store to a team's service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mld_core.cli.common import (
    FAILED,
    JsonOption,
    ModelArgument,
    StoreOption,
    VersionArgument,
    choose_run,
    clear_errors,
    open_store,
    runs_of,
)
from mld_core.cli.output import emit, note
from mld_core.cli.source import the_service

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mld_core.records.format.layout import RunKey, Store
    from mld_core.service.client.api import Client
    from mld_core.service.client.sealed import SealedRank
    from mld_core.service.client.uploader import Outcome, Uploader
    from mld_core.service.client.verdicts import Exchanged

COLUMNS = ("state", "model", "version", "dataset", "epoch", "pass", "rank", "files", "bytes", "message")


def sync(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every run of the store.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Ask the service about all, also about what was sent before.")
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The service. Default: MLD_API_ENDPOINT.", show_default=False),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send recorded passes to a team's service: what is not there yet, each exactly once.

    Trainings upload by themselves where MLD_API_ENDPOINT and MLD_API_KEY are set; this sends what they could
    not, or what was recorded before. It may be stopped and called again at any time: files are known by their
    content, a file that was cut goes on where it stopped. Passes that were not finished stay here. What
    people said of samples goes both ways: after it, this store and the service hold the same verdicts.

    \b
    Examples:
      mld sync                     the newest run
      mld sync resnet18 v3
      mld sync --all               the whole store: moving from a local store to a service
      mld sync --all --again       after the service lost something
    """  # noqa: D301  click reads the mark
    if everything and model is not None:
        raise typer.BadParameter("--all means every run: give no MODEL with it")
    with clear_errors():
        from mld_core.service.client.api import Client
        from mld_core.service.client.uploader import Uploader

        service = the_service(endpoint)
        opened = open_store(store)
        named = everything or model is not None
        runs = runs_of(opened, model, version) if named else [choose_run(opened, None, None)]
        with _bar() as (progress, task):
            job = Uploader(
                opened,
                Client(service.url, service.api_key),
                again=again,
                on_bytes=lambda count: progress.advance(task, count),
                on_problem=note,
            )
            ranks = job.plan(runs)
            progress.update(task, total=sum(rank.bytes for rank in ranks))
            outcomes = _send(job, ranks, progress, task, as_json=as_json)
        said = _exchange_verdicts(opened, Client(service.url, service.api_key), runs)
        failed = [one for one in outcomes if one.state == "failed"]
        sent = sum(one.bytes for one in outcomes)
        note(
            f"{len(outcomes) - len(failed)} of {len(ranks)} passes sent to {service.url} "
            f"({sent / 1e6:.1f} MB), {job.skipped} were there already"
        )
        if said.sent or said.received:
            note(f"{said.sent} verdicts sent, {said.received} of others received")
        if failed:
            note(f"mld: {len(failed)} could not be sent: {failed[0].message}")
            raise typer.Exit(FAILED)


def _exchange_verdicts(store: Store, client: Client, runs: list[RunKey]) -> Exchanged:
    """What people said of these runs, either way."""
    from mld_core.service.client.verdicts import Exchanged, exchange_verdicts

    done = [exchange_verdicts(store, client, run) for run in runs]
    return Exchanged(sum(one.sent for one in done), sum(one.received for one in done))


def _send(
    job: Uploader, ranks: list[SealedRank], progress: Progress, task: TaskID, *, as_json: bool
) -> list[Outcome]:
    """Send them, a few at once; what was done is printed also where the service goes away meanwhile."""
    outcomes: list[Outcome] = []
    through = 0
    try:
        for rank, outcome in zip(ranks, job.send_all(ranks), strict=True):
            outcomes.append(outcome)
            through += rank.bytes  # files the service had count, too
            label = f"{len(outcomes)}/{len(ranks)} {rank.label}"
            progress.update(task, description=label, completed=through)
    finally:
        progress.stop()
        rows = [_row(*one) for one in zip(ranks, outcomes, strict=False)]
        emit(rows, COLUMNS, as_json=as_json)
    return outcomes


def _row(rank: SealedRank, outcome: Outcome) -> dict[str, Any]:
    opened = rank.opened
    return {
        "state": outcome.state,
        "model": opened.model_name,
        "version": opened.version_name,
        "dataset": opened.dataset_type,
        "epoch": opened.n_epoch,
        "pass": opened.pass_no,
        "rank": opened.rank,
        "files": outcome.files,
        "bytes": outcome.bytes,
        "message": outcome.message,
    }


@contextlib.contextmanager
def _bar() -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar in bytes on stderr, where a person looks."""
    from rich import progress as bar
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        *(bar.TextColumn("{task.description}"), bar.BarColumn(), bar.DownloadColumn()),
        *(bar.TransferSpeedColumn(), bar.TimeRemainingColumn()),
    )
    with bar.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task("looking", total=None)
