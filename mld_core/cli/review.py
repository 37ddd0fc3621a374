"""`mld review`: say what is wrong with samples, accept suspected labels, take the corrections away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mld_core.cli.common import (
    JsonOption,
    ModelArgument,
    StoreOption,
    VersionArgument,
    choose_run,
    clear_errors,
    open_store,
)
from mld_core.cli.output import emit, note
from mld_core.cli.source import StoreSource
from mld_core.evaluation.errors import NotFoundError
from mld_core.exchange.relabel import correct_csv, relabelled, write_relabel
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import KINDS, Verdict
from mld_core.records.store.verdicts import Verdicts

review = typer.Typer(
    name="review",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Verdicts on samples: give, list, take back, export, apply to a file of labels.",
)

SplitOption = Annotated[str, typer.Option("--split", help="The split.")]
AuthorOption = Annotated[
    str,
    typer.Option("--author", help="Who says it. Default: MLD_AUTHOR, else your account.", show_default=False),
]


@review.command("add")
def add(
    ids: Annotated[list[str], typer.Argument(help="Input ids of the samples.", show_default=False)],
    *,
    verdict: Annotated[str, typer.Option("--verdict", help=f"One of {', '.join(KINDS)}.")],
    label: Annotated[
        int | None, typer.Option("--label", help="The class that is right, with relabel.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name. Default: the newest run's.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Its version. Default: the newest.", show_default=False)
    ] = None,
    split: SplitOption = "val",
    text: Annotated[str, typer.Option("--note", help="Why, in your words.", show_default=False)] = "",
    author: AuthorOption = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with samples of the newest result, or that nothing is.

    \b
    Examples:
      mld review add 17 204 --verdict relabel --label 3
      mld review add 31 --verdict ambiguous --note "1 or 7"
    """  # noqa: D301  click reads the mark
    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        seen = _seen(opened, run, split, ids)
        made = Verdicts(opened, run).append(
            Verdict(verdict, split, one, label=label, note=text, author=author, **seen[one]) for one in ids
        )
        _show(made, as_json=as_json)


@review.command("accept")
def accept(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    first: Annotated[int, typer.Option("--first", min=1, help="So many suspected labels, the worst first.")],
    split: SplitOption = "train",
    author: AuthorOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show them.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accept the suggested label of the worst suspected labels of a split; look at some of them before.

    \b
    Examples:
      mld review accept --first 20 --dry-run
      mld review accept digits v1 --first 100 --split train
    """  # noqa: D301  click reads the mark
    from mld_core.review import suggest

    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        found = suggest(StoreSource(opened).result(run), split, first, author=author)
        if not found:
            raise NotFoundError(f"no label of {split!r} is suspected in the newest result of {_title(run)}")
        _show(found if dry_run else Verdicts(opened, run).append(found), as_json=as_json)
        note(f"{len(found)} suspected labels {'would be' if dry_run else 'are'} accepted for {_title(run)}")


@review.command("list")
def show(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """What stands of every reviewed sample, conflicts first."""
    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        book = Verdicts(opened, run)
        _, problems = book.read()
        found = sorted(book.standing().values(), key=lambda one: not one.conflict)
        rows = [
            {
                "dataset": one.subject.dataset_type,
                "input_id": one.subject.input_id,
                "truth": one.subject.truth,
                "stands": "conflict" if one.verdict is None else one.verdict.kind,
                "label": None if one.verdict is None else one.verdict.label,
                "heard": [f"{heard.author}:{heard.kind}" for heard in one.heard],
            }
            for one in found
        ]
        emit(rows, ("dataset", "input_id", "truth", "stands", "label", "heard"), as_json=as_json)
        for problem in problems:
            note(f"mld: {problem}")


@review.command("undo")
def undo(
    ids: Annotated[list[str], typer.Argument(help="Input ids of the samples.", show_default=False)],
    *,
    model: Annotated[
        str | None, typer.Option(help="Model name. Default: the newest run's.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Its version. Default: the newest.", show_default=False)
    ] = None,
    split: SplitOption = "val",
    author: AuthorOption = "",
    store: StoreOption = None,
) -> None:
    """Take back what was last said of samples."""
    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        book = Verdicts(opened, run)
        found = {subject.input_id: one for subject, one in book.standing(split).items()}
        missing = [one for one in ids if one not in found]
        if missing:
            raise NotFoundError(f"no verdict on {', '.join(missing)} of {split!r} in {_title(run)}")
        book.undo((found[one].heard[-1] for one in ids), author=author)
        note(f"{len(ids)} verdicts taken back")


@review.command("export")
def export(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="relabel.json, or a .csv.")] = Path(
        "relabel.json"
    ),
    store: StoreOption = None,
) -> None:
    """Write the labels that stand as corrected, as relabel.json or CSV."""
    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        names = opened.run_info(run).get("class_names")
        count = write_relabel(output, run, Verdicts(opened, run).standing().values(), names)
        typer.echo(str(output))
        note(f"{count} corrected labels of {_title(run)}")


@review.command("import")
def take_in(
    file: Annotated[
        Path,
        typer.Argument(
            help="Label Studio's JSON export, or CVAT's annotations.xml (CVAT for images 1.1).",
            show_default=False,
        ),
    ],
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    index: Annotated[
        Path | None,
        typer.Option(help="Of CVAT: the index.json written by mld export.", show_default=False),
    ] = None,
    author: AuthorOption = "",
    store: StoreOption = None,
) -> None:
    """Bring labels that people gave in Label Studio or CVAT back as verdicts.

    For a project made by `mld export --format label-studio` (or cvat). What is here already is not doubled.

    \b
    Example:
      mld review import project-1.json
      mld review import annotations.xml --index out/val_epoch-1/index.json
    """  # noqa: D301  click reads the mark
    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        book = Verdicts(opened, run)
        given = _of_tool(file, index, opened.run_info(run).get("class_names") or (), author)
        known = {_content(one) for one in book.read()[0]}
        new = [one for one in given if _content(one) not in known]
        book.append(new)
        kinds = Counter(one.kind for one in new)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
        note(f"verdicts on {_title(run)}: {said}; {len(given) - len(new)} were here already")


def _of_tool(file: Path, index: Path | None, class_names: Sequence[str], author: str) -> list[Verdict]:
    if file.suffix.lower() == ".xml":
        index = index or file.with_name("index.json")
        if not index.is_file():
            raise FileNotFoundError(f"{index}: --index names the index.json that mld export wrote")
        from mld_core.exchange.cvat import read_cvat

        return list(read_cvat(file, index, author=author))
    from mld_core.exchange.label_studio import read_label_studio

    found = read_label_studio(file, class_names)
    return [replace(one, author=author or one.author) for one in found]


def _content(one: Verdict) -> tuple[Any, ...]:
    """What a verdict from a file says: the same twice is not another person's word."""
    return one.kind, one.dataset_type, one.input_id, one.truth, one.label, one.note


@review.command("apply")
def apply(
    labels: Annotated[
        Path,
        typer.Argument(
            help="A CSV of ids and class numbers, or COCO annotations (.json).", show_default=False
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The corrected file.")],
    id_column: Annotated[str, typer.Option(help="Column of the ids.")] = "input_id",
    label_column: Annotated[str, typer.Option(help="Column of the class numbers.")] = "label",
    model: Annotated[
        str | None, typer.Option(help="Model name. Default: the newest run's.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Its version. Default: the newest.", show_default=False)
    ] = None,
    split: SplitOption = "train",
    store: StoreOption = None,
) -> None:
    """Write a file of labels anew with the corrected ones in place (in Python: ml_debugger.review.apply).

    \b
    Example:
      mld review apply train.csv -o train-corrected.csv --id-column file
      mld review apply instances_val.json -o corrected.json --split val
    """  # noqa: D301  click reads the mark
    with clear_errors():
        opened = open_store(store)
        run = choose_run(opened, model, version)
        if labels.suffix.lower() == ".json":
            _apply_coco(labels, output, opened, run, split)
            return
        rows = relabelled(Verdicts(opened, run).standing(split).values())
        if not rows:
            raise NotFoundError(f"no label of {split!r} stands as corrected in {_title(run)}")
        wanted = {row["input_id"]: (row["given"], row["label"]) for row in rows if row["truth"] is None}
        changed, skipped = correct_csv(labels, output, wanted, id_column=id_column, label_column=label_column)
        typer.echo(str(output))
        note(f"{changed} labels changed, {len(skipped)} not")
        for one in skipped:
            note(f"mld: {one}")


def _apply_coco(labels: Path, output: Path, store: Store, run: RunKey, split: str) -> None:
    """Lay what was said of boxes over COCO annotations."""
    from mld_core.exchange.coco_patch import correct_coco

    found = Verdicts(store, run).standing(split).values()
    names = store.run_info(run).get("class_names")
    laid = correct_coco(labels, output, found, names)
    typer.echo(str(output))
    drawn = f"{laid.moved} moved, {laid.removed} removed"
    note(f"{laid.changed} categories changed, {laid.added} boxes added, {drawn}, {len(laid.skipped)} not")
    for one in laid.skipped:
        note(f"mld: {one}")


def _seen(store: Store, run: RunKey, split: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the newest records say of these samples: the label and the content that the person looked at.

    Raises:
        NotFoundError: A sample is not recorded under that split.
    """
    from mld_core.records.read.reader import load

    table = load(run.model_name, run.version_name, dataset_type=split, n_epoch="latest", store=store)
    names = [name for name in ("input_id", "label", "input_hash") if name in table.column_names]
    wanted = set(ids)
    rows = {row["input_id"]: row for row in table.select(names).to_pylist() if row["input_id"] in wanted}
    missing = [one for one in ids if one not in rows]
    if missing:
        raise NotFoundError(f"{_title(run)} has no sample {', '.join(missing)} in {split!r}")
    return {
        name: {"given": row.get("label"), "input_hash": row.get("input_hash")} for name, row in rows.items()
    }


def _show(verdicts: Sequence[Verdict], *, as_json: bool) -> None:
    columns = ("dataset", "input_id", "kind", "given", "label", "author")
    rows = [
        {
            "dataset": one.dataset_type,
            "input_id": one.input_id,
            "kind": one.kind,
            "given": one.given,
            "label": one.label,
            "author": one.author,
        }
        for one in verdicts
    ]
    emit(rows, columns, as_json=as_json)


def _title(run: RunKey) -> str:
    return f"{run.model_name} {run.version_name}"
