"""`mld rm`: removing runs, epochs, results, and every row of a sample."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from mld_core.cli.common import (
    FAILED,
    DatasetOption,
    JsonOption,
    StoreOption,
    clear_errors,
    open_store,
    runs_of,
)
from mld_core.cli.output import emit, note
from mld_core.cli.source import ServiceSource, the_service
from mld_core.evaluation.errors import NotFoundError
from mld_core.records.format.layout import RunKey, Store

COLUMNS = ("model", "version", "what", "rows", "files", "bytes")


@dataclass(frozen=True)
class Wanted:
    """What is to be removed of each run; nothing named = all of it."""

    dataset_type: str | None = None
    epochs: list[int | None] = field(default_factory=list)
    input_ids: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)


def rm(
    model: Annotated[str, typer.Argument(help="Model name.")],
    version: Annotated[
        str | None, typer.Argument(help="Only this version. Default: all.", show_default=False)
    ] = None,
    *,
    epoch: Annotated[
        list[str] | None,
        typer.Option(metavar="N", help="Only this epoch, or none. Repeat for several.", show_default=False),
    ] = None,
    dataset: DatasetOption = None,
    input_id: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Every row of this sample. Repeat for several.", show_default=False),
    ] = None,
    result: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this result. Repeat for several.", show_default=False),
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="At the service (a key with scope admin).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a run, epochs of it, results, or every row of a sample. There is no way back.

    With --input-id the sample is gone from every epoch, split and table, from verdicts, and with the results
    that hold it; ids mean something within one data set, so name the split where two have the same ids.

    \b
    Examples:
      mld rm resnet18 v3 --dry-run             what would go
      mld rm resnet18 v3                       a version, with its results
      mld rm resnet18 v3 --epoch 0 --epoch 1   epochs of all splits
      mld rm resnet18 --input-id patient-17    a sample, in all versions
      mld rm resnet18 v3 --result first
      mld rm resnet18 v3 --remote              at your team's service; not here
    """  # noqa: D301  click reads the mark
    epochs = [_epoch(text) for text in epoch or ()]
    wanted = Wanted(dataset, epochs, list(input_id or ()), list(result or ()))
    if sum(map(bool, (epochs, wanted.input_ids, wanted.results))) > 1 or (dataset and wanted.results):
        raise typer.BadParameter("give --epoch, --input-id or --result, one of them")
    with clear_errors():
        place: Here | There = There() if remote else Here(open_store(store))
        runs = place.runs(model, version)
        rows = [row for run in runs for row in place.remove(run, wanted, dry_run=True)]
        if not dry_run and _agreed(rows, yes=yes, as_json=as_json):
            rows = [row for run in runs for row in place.remove(run, wanted, dry_run=False)]
        emit(rows, COLUMNS, as_json=as_json)
        _sum(rows, dry_run=dry_run)


def _sum(rows: list[dict[str, Any]], *, dry_run: bool) -> None:
    count, size = (sum(int(row[name]) for row in rows) for name in ("rows", "bytes"))
    note(f"{count} rows, {size / 1e6:.1f} MB {'would go' if dry_run else 'removed'}")
    left = [path for row in rows for path in row.get("left", ())]
    if left:
        note(
            f"mld: {len(left)} ranks have not sealed and still hold rows, which count for nobody: `mld gc` "
            f"takes them out once they are sealed ({', '.join(left[:3])})"
        )


def _epoch(text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--epoch {text!r}: expected a whole number or none") from None


def _agreed(rows: list[dict[str, Any]], *, yes: bool, as_json: bool) -> bool:
    """Whether the person at the terminal wants this; without one, --yes is needed."""
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError("there is no terminal to ask at: look with --dry-run, then give --yes")
    for row in rows if not as_json else ():
        size = f"{row['rows']} rows, {row['bytes'] / 1e6:.1f} MB"
        note(f"{row['model']} {row['version']}: {row['what']}, {size}")
    if typer.confirm("Remove this for good?", err=True):
        return True
    raise typer.Exit(FAILED)


class Here:
    """A store of this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def runs(self, model: str, version: str | None) -> list[RunKey]:
        """The runs that are meant."""
        return runs_of(self._store, model, version)

    def remove(self, run: RunKey, wanted: Wanted, *, dry_run: bool) -> list[dict[str, Any]]:
        """See `remove_here`."""
        return remove_here(self._store, run, wanted, dry_run=dry_run)


class There:
    """The service."""

    def __init__(self) -> None:
        self._source = ServiceSource(the_service())
        self._ids: dict[RunKey, str] = {}

    def runs(self, model: str, version: str | None) -> list[RunKey]:
        """The runs that are meant."""
        found = self._source.runs(model, version)
        self._ids = {RunKey(one["model_name"], one["version_name"]): str(one["run_id"]) for one in found}
        return list(self._ids)

    def remove(self, run: RunKey, wanted: Wanted, *, dry_run: bool) -> list[dict[str, Any]]:
        """Remove there, or say what would go; the bytes go within seconds."""
        body = {
            "dataset_type": wanted.dataset_type,
            "epochs": wanted.epochs,
            "input_ids": wanted.input_ids,
            "results": wanted.results,
            "dry_run": dry_run,
        }
        found = self._source.client.json("POST", f"/v1/runs/{self._ids[run]}/removals", body=body)
        what = " ".join(["samples"] * bool(wanted.input_ids) + [f"result {one}" for one in found["results"]])
        whole = "run" if wanted == Wanted() else "passes"
        values = (run.model_name, run.version_name, what or whole, *(found[name] for name in COLUMNS[3:]))
        return [dict(zip(COLUMNS, values, strict=True))]


def remove_here(store: Store, run: RunKey, wanted: Wanted, *, dry_run: bool) -> list[dict[str, Any]]:
    """Remove from a store, or say what would go: one row for each thing."""
    from mld_core.evaluation.results.store import ResultStore
    from mld_core.records.format.removals import id_digest
    from mld_core.records.store.verdicts import Verdicts
    from mld_core.records.write.removal import finish_removed, remove_passes, remove_samples

    def row(what: str, rows: int, files: int, size: int, **more: Any) -> dict[str, Any]:
        values = (run.model_name, run.version_name, what, rows, files, size)
        return dict(zip(COLUMNS, values, strict=True)) | more

    def result_row(name: str) -> dict[str, Any]:
        return row(f"result {name}", 0, *results.remove(name, dry_run=dry_run))

    results = ResultStore(store, run)
    if wanted.results:
        return [result_row(name) for name in wanted.results]
    if not dry_run:
        finish_removed(store)
    if not wanted.input_ids:
        epochs = wanted.epochs or None
        gone = remove_passes(store, run, dataset_type=wanted.dataset_type, epochs=epochs, dry_run=dry_run)
        what = "run" if wanted == Wanted() else "passes"
        if what == "passes" and not gone.files:
            raise NotFoundError(f"{run.model_name} {run.version_name} has no such epoch")
        return [row(what, gone.rows, gone.files, gone.bytes)]
    gone = remove_samples(store, run, wanted.input_ids, dataset_type=wanted.dataset_type, dry_run=dry_run)
    made = [row("samples", gone.rows, gone.files, gone.bytes, left=[str(path) for path in gone.left])]
    digests = frozenset(map(id_digest, wanted.input_ids))
    made += [result_row(name) for name in results.mentioning(digests)]
    if not dry_run:
        Verdicts(store, run).forget(wanted.input_ids, wanted.dataset_type)
    return made
