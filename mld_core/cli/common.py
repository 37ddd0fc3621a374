"""What the commands share: options, the store, the names of a run, and errors as one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from mld_core.cli.output import note
from mld_core.evaluation.errors import FilterError, NotFoundError, ResultExistsError
from mld_core.evaluation.results.store import find_run
from mld_core.explained import explained
from mld_core.records.format.bucket import BucketPath, check_answers
from mld_core.records.format.layout import RunKey, Store, store_root, subfolders

OK, FAILED, USAGE, NOTHING = 0, 1, 2, 3

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        parser=store_root,
        help="The store: a folder or, where records are read alone, s3://bucket/prefix. "
        "Default: MLD_HOME, else ~/.mld.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ModelArgument = Annotated[
    str | None, typer.Argument(help="Model name. Default: that of the newest run.", show_default=False)
]
VersionArgument = Annotated[
    str | None, typer.Argument(help="Version name. Default: the model's newest.", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option(help="Model of the versions. Default: the newest run's.", show_default=False)
]
DatasetOption = Annotated[str | None, typer.Option(help="Only this split.", show_default=False)]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the errors a user can mend into one line on stderr and an exit code."""
    try:
        yield
    except NotFoundError as error:
        raise _stop(error, NOTHING) from error
    except (FilterError, ResultExistsError) as error:
        raise _stop(error, USAGE) from error
    except BrokenPipeError:  # whoever read our output has enough
        raise
    except (ImportError, OSError) as error:  # an extra; the disk, a service, permissions
        raise _stop(error, FAILED) from error
    except ValueError as error:
        from mld_core.records.format.parts import DamagedPartError

        if isinstance(error, DamagedPartError):
            raise _stop(f"{error}; `mld doctor` lists what is damaged", FAILED) from error
        raise _stop(error, USAGE) from error


def _stop(message: object, code: int) -> typer.Exit:
    note(explained(f"mld: {message}"))
    return typer.Exit(code)


def store_in_folder(path: Path | None) -> Store:
    """The store, which may hold nothing yet.

    Raises:
        ValueError: It lies in a bucket.
    """
    store = Store(path)
    if isinstance(store.root, BucketPath):
        raise ValueError(  # noqa: TRY004  a value of a path that the user gave
            f"{store.root}: this command works on a folder; of a store in a bucket `mld ls`, `mld show`, "
            "`mld evaluate`, `mld compare` and `mld report` read. Copy it to a folder first (e.g. with "
            "rclone or `aws s3 sync`) and give that with --store DIR"
        )
    return store


def open_store(path: Path | None, *, reads: bool = False) -> Store:
    """The store, which must hold at least one run.

    Args:
        path: Its folder; None = the default.
        reads: Records are read and nothing else: it may lie in a bucket.

    Raises:
        NotFoundError: The folder is missing, or holds no runs.
        ValueError: It lies in a bucket, and more is wanted than to read its records.
        UnreachableStoreError: The bucket does not answer.
    """
    store = Store(path) if reads else store_in_folder(path)
    check_answers(store.root)
    if not store.root.is_dir():
        raise NotFoundError(
            f"there is no store at {store.root}: record a training first, or say where it is with --store "
            "DIR or MLD_HOME"
        )
    if not store.runs():
        raise NotFoundError(
            f"the store {store.root} holds no runs: record a training first, or give another with --store "
            "DIR or MLD_HOME"
        )
    return store


def choose_run(store: Store, model: str | None, version: str | None) -> RunKey:
    """The run that was named; with no version the model's newest, with no names the newest of all.

    Raises:
        NotFoundError: There is no run of that name; the message lists what exists.
    """
    if model is not None and version is not None:
        return find_run(store, model, version)
    from mld_core.records.format.attempts import list_passes

    def newest(run: RunKey) -> tuple[str, str]:
        """The newest attempt's name begins with the time of the launch."""
        attempts = (path for key in list_passes(store, run) for path in subfolders(store.pass_dir(run, key)))
        made = str(store.run_info(run).get("created_at", ""))
        return max((path.name for path in attempts), default=""), made

    return max(runs_of(store, model), key=newest)


def runs_of(store: Store, model: str | None, version: str | None = None) -> list[RunKey]:
    """The runs that were meant: one, those of a model, or all.

    Raises:
        NotFoundError: There is no run of that name; the message lists what exists.
    """
    if model is not None and version is not None:
        return [find_run(store, model, version)]
    runs = [run for run in store.runs() if model in {None, run.model_name}]
    if not runs and model is not None:
        find_run(store, model, "")
    return runs


def parse_epoch(text: str) -> int | Literal["latest"] | None:
    """Read an `--epoch` option.

    Raises:
        typer.BadParameter: It is none of latest, all and a whole number.

    Example:
        >>> parse_epoch("latest"), parse_epoch("all"), parse_epoch("-1")
        ('latest', None, -1)
    """
    if text == "latest":
        return "latest"
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected latest, all or a whole number") from None
