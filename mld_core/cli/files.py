"""`mld export`, `mld gc`, `mld merge`: moving records and making room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

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
    parse_epoch,
    runs_of,
)
from mld_core.cli.output import emit, emit_json, note
from mld_core.evaluation.errors import NotFoundError
from mld_core.records.format.layout import RunKey, Store


def export(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .zip file or a folder. Default: here.", show_default=False),
    ] = None,
    epoch: Annotated[str, typer.Option(help="latest, all, or the number of an epoch.")] = "all",
    form: Annotated[
        Literal[
            "zip",
            "coco",
            "kitti",
            "nuscenes",
            "yolo",
            "fiftyone",
            "label-studio",
            "cvat",
            "hf-dataset",
            "cleanlab",
        ],
        typer.Option(
            "--format",
            help="zip: everything. Of samples: fiftyone, label-studio, cvat, hf-dataset, cleanlab. Of 2D "
            "boxes: coco, yolo, fiftyone, label-studio, cvat. Of 3D boxes: kitti, nuscenes.",
        ),
    ] = "zip",
    class_names: Annotated[
        str | None,
        typer.Option(help="Names by label, with commas. Default: those of the run.", show_default=False),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the records of a run into one ZIP: features, logits and ground truth.

    With --format each pass goes into a folder that another tool reads; what the newest evaluation found of
    samples goes with it, where the format takes it. `mld review import` brings labels back.

    \b
    Examples:
      mld export resnet18 v3                          into the current folder
      mld export resnet18 v3 -o out/ --epoch latest
      mld export centerpoint v1 --format nuscenes -o out/
      mld export resnet18 v3 --format label-studio --epoch latest
    """  # noqa: D301  click reads the mark
    with clear_errors():
        from mld_core.exchange.export import export_passes
        from mld_core.records.store.export import export_run

        opened = open_store(store)
        run = choose_run(opened, model, version)
        if form != "zip":
            given = class_names.split(",") if class_names else None
            folders = export_passes(
                opened,
                run,
                form,
                output,
                parse_epoch(epoch),
                class_names=given,
                findings=findings_of(opened, run),
            )
            if as_json:
                emit_json({"format": form, "paths": folders})
            else:
                for folder in folders:
                    typer.echo(str(folder))
            return
        path = export_run(opened, run, output, parse_epoch(epoch))
        if as_json:
            emit_json({"path": path, "bytes": path.stat().st_size})
        else:
            typer.echo(str(path))


def findings_of(store: Store, run: RunKey) -> dict[str, dict[str, dict[str, Any]]]:
    """Split -> id -> what the newest result says of the samples it lists; empty where there is none."""
    from mld_core.cli.source import StoreSource
    from mld_core.exchange.samples import FINDINGS

    try:
        result = StoreSource(store).result(run)
    except NotFoundError:
        return {}
    if result.task != "classification":
        return {}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    issues = result.get_issues()
    columns = [name for name in FINDINGS if name in issues]
    issues = issues.astype(object).where(issues.notna(), None)
    for row in issues[["dataset", "input_id", *columns]].to_dict("records"):
        one = {name: row[name] for name in columns if row[name] is not None}
        if "diagnosis" in one:
            one["diagnosis"] = [str(code) for code in one["diagnosis"]]
        found.setdefault(str(row["dataset"]), {})[str(row["input_id"])] = one
    return found


def collect(
    model: Annotated[str | None, typer.Argument(help="Only this model.", show_default=False)] = None,
    version: Annotated[str | None, typer.Argument(help="Only this version.", show_default=False)] = None,
    *,
    keep_vectors: Annotated[
        int | None,
        typer.Option(
            min=0, help="Also drop feature vectors but those of the last N epochs.", show_default=False
        ),
    ] = None,
    max_gb: Annotated[
        float | None,
        typer.Option(
            help="Also drop feature vectors, oldest first, until the store fits.", show_default=False
        ),
    ] = None,
    min_age: Annotated[float, typer.Option(help="Leave what was changed within so many seconds.")] = 3600.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what no reader looks at: leftovers, superseded attempts, recreated tables.

    Logits, labels and all scalars are never touched; feature vectors only go with --keep-vectors or --max-gb.
    Nothing that may belong to a running process goes.

    \b
    Examples:
      mld gc --dry-run                   what would go
      mld gc --keep-vectors 2            features of the last two epochs of each split stay
      mld gc resnet18 v3 --min-age 0
    """  # noqa: D301  click reads the mark
    if max_gb is not None and model is not None:
        raise typer.BadParameter("--max-gb is about the whole store: give no MODEL with it")
    with clear_errors():
        from mld_core.records.write.gc import gc
        from mld_core.records.write.removal import finish_removed, sweep
        from mld_core.records.write.retention import prune

        opened = open_store(store)
        if not dry_run:
            finish_removed(opened)
        rows: list[dict[str, str | int]] = []
        failed: list[str] = []
        for run in runs_of(opened, model, version):
            if not dry_run:
                sweep(opened, run)
            report = gc(opened, run, dry_run=dry_run, min_age_s=min_age)
            rows += [_row(item.kind, item.path, item.bytes) for item in report.items]
            failed += report.failed
            if keep_vectors is not None:
                pruned = prune(opened, run, keep_vectors=keep_vectors, dry_run=dry_run, on_warning=note)
                rows += [_row("features", path, size) for path, size in pruned.pruned]
        if max_gb is not None:
            pruned = prune(opened, keep_vectors=None, max_store_gb=max_gb, dry_run=dry_run, on_warning=note)
            rows += [_row("features", path, size) for path, size in pruned.pruned]
        emit(rows, ("kind", "bytes", "path"), as_json=as_json)
        freed = sum(int(row["bytes"]) for row in rows)
        note(f"{len(rows)} items, {freed / 1e6:.1f} MB {'would go' if dry_run else 'freed'} in {opened.root}")
        for message in failed:
            note(f"mld: {message}")
        if failed:
            raise typer.Exit(FAILED)


def _row(kind: str, path: Path, size: int) -> dict[str, str | int]:
    return {"kind": kind, "bytes": size, "path": str(path)}


def merge_stores(
    sources: Annotated[
        list[Path], typer.Argument(help="The stores to read; they are not changed.", show_default=False)
    ],
    *,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into",
            "--store",
            metavar="DIR",
            help="The store to write. Default: MLD_HOME, else ~/.mld.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Join stores that were written on several machines.

    Records that are there already are skipped; what does not fit together is kept as it is and told (exit
    code 1).

    \b
    Examples:
      mld merge /mnt/node0/.mld /mnt/node1/.mld --into all
      mld merge copied-store
    """  # noqa: D301  click reads the mark
    with clear_errors():
        from mld_core.records.store.merge import merge

        for source in sources:
            if not source.expanduser().is_dir():
                raise NotFoundError(f"there is no store at {source.expanduser().absolute()}")
        report = merge(sources, Store(into))
        lines = [
            *({"state": "copied", "path": str(path)} for path in report.copied),
            *({"state": "skipped", "path": str(path)} for path in report.skipped),
            *({"state": "conflict", "path": message} for message in report.conflicts),
        ]
        emit(lines, ("state", "path"), as_json=as_json)
        counts = f"{len(report.copied)} copied, {len(report.skipped)} there already"
        note(f"{counts}, {len(report.conflicts)} conflicts in {Store(into).root}")
        if report.conflicts:
            raise typer.Exit(FAILED)
