"""Where results lie: `.results/<name>/` in the run's folder, written once, atomically, and never changed.

A result is a folder: `result.json` (what was asked, of which records, what is wrong with them),
`metrics.parquet`, `categories.parquet`, `classes.parquet`, `confusion.parquet`, a `units-<n>.parquet`
for each evaluated pass. It is built under a temporary name, made durable, and renamed; readers see it whole
or not at all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mld_core.evaluation.errors import NotFoundError, RecordsRemovedError, ResultExistsError, known, near
from mld_core.records.format import names
from mld_core.records.format.bucket import BucketPath, UnreachableStoreError
from mld_core.records.format.layout import RESULTS_DIR, RunKey, Store, subfolders
from mld_core.records.format.manifest import fsync_dir, tmp_name

if TYPE_CHECKING:
    import pyarrow as pa

RESULT_FILE = "result.json"
FORMAT = 1
_EXISTS = {errno.EEXIST, errno.ENOTEMPTY, errno.EACCES}


def utc_now() -> str:
    """The time as text, UTC with seconds, e.g. `2026-11-21T08:15:30+00:00`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class ResultStore:
    """The results of one run."""

    def __init__(self, store: Store, run: RunKey) -> None:
        self.store = store
        self.run = run
        self.root = store.results_dir(run)
        # Results that lie in a bucket beside the records are copied here when they are read.
        own = store.run_dir(run) / RESULTS_DIR
        self._bucket = own if isinstance(own, BucketPath) else None

    @property
    def spill(self) -> Path:
        """Where DuckDB puts what does not fit in memory: inside the store."""
        return self.root / ".spill"

    def all(self) -> list[dict[str, Any]]:
        """The `result.json` of every complete result, oldest first."""
        found: list[dict[str, Any]] = []
        if self.root.is_dir():
            folders = [folder for folder in self.root.iterdir() if not folder.name.startswith(".")]
            found = [info for folder in folders if (info := _read(folder)) is not None]
        if self._bucket is not None:
            here = {info["result_name"] for info in found}
            there = (_read(folder) for folder in subfolders(self._bucket))
            found += [info for info in there if info is not None and info["result_name"] not in here]
        return sorted(found, key=lambda info: (str(info["completed_at"]), str(info["result_name"])))

    def folder(self, result_name: str) -> Path:
        """Where the result of that name lies or would lie."""
        return self.root / names.encode(result_name)

    def load(self, result_name: str) -> tuple[Path, dict[str, Any]]:
        """The folder and the `result.json` of a result.

        Raises:
            NotFoundError: There is no such result; the message lists those that are there.
        """
        folder = self.folder(result_name)
        info = _read(folder)
        if info is None and self._bucket is not None and _read(self._bucket / folder.name) is not None:
            with self.writing() as made:
                for path in (self._bucket / folder.name).iterdir():
                    with path.source() as source, (made / path.name).open("xb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                _make_durable(made)
                made.replace(folder)
            info = _read(folder)
        if info is None:
            there = [str(one["result_name"]) for one in self.all()]
            raise NotFoundError(
                f"no result {result_name!r} for model {self.run.model_name!r} version "
                f"{self.run.version_name!r}"
                f"{near(result_name, there)} (results: {known(there)}); evaluate with request_evaluation()"
            )
        return folder, info

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A folder to build a result in; removed at the end unless `publish` took it."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = self.root / tmp_name("result")
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check_free(self, result_name: str) -> None:
        """Refuse a name that is taken, before any work is done.

        Raises:
            ResultExistsError: A result of that name exists.
        """
        there = self._bucket is not None and (self._bucket / names.encode(result_name)).exists()
        if there or self.folder(result_name).exists():
            raise ResultExistsError(
                f"result {result_name!r} exists and results are never changed: read it with "
                f"get_result({result_name!r}), or pass another result_name (None makes one)"
            )

    def publish(self, folder: Path, info: dict[str, Any], *, numbered: bool) -> str:
        """Give a built folder its name.

        Args:
            folder: What `writing` gave.
            info: Content of `result.json`; `result_name` is the wanted name.
            numbered: Append `_2`, `_3`, ... where the name is taken; else that is an error.

        Returns:
            The name the result got.

        Raises:
            ResultExistsError: The name is taken.
            RecordsRemovedError: It tells of samples that were removed while it was made.
        """
        if self._holds_removed(folder, info):
            raise RecordsRemovedError(
                f"records of {self.run.model_name!r} {self.run.version_name!r} were removed while they were "
                "evaluated: evaluate again"
            )
        wanted = str(info["result_name"])
        number = 1
        while True:
            name = wanted if number == 1 else f"{wanted}_{number}"
            (folder / RESULT_FILE).write_text(
                json.dumps({**info, "result_name": name}, indent=1), encoding="utf-8"
            )
            _make_durable(folder)
            try:
                folder.rename(self.folder(name))
            except OSError as error:
                if error.errno not in _EXISTS or not self.folder(name).exists():
                    raise
                if not numbered:
                    self.check_free(name)
                number += 1
            else:
                return name

    def _holds_removed(self, folder: Path, info: dict[str, Any]) -> bool:
        """Whether a sample is there that is removed from every split, or from the one it stands in.

        The ids of one split may be those of other samples in another, as indices of data sets are.
        """
        from mld_core.records.format.removals import Removals

        removals = Removals(self.store, self.run)
        if mentions(folder, removals.everywhere()):
            return True
        for one in info.get("passes", []):
            gone = removals.of_split(one["dataset"])
            if gone and table_holds(folder / one["units"], gone):
                return True
        return False

    def mentioning(self, digests: frozenset[str]) -> list[str]:
        """The names of the results that hold one of these samples (`id_digest` of their ids)."""
        names_there = [str(info["result_name"]) for info in self.all()]
        return [name for name in names_there if mentions(self.folder(name), digests)]

    def remove(self, result_name: str, *, dry_run: bool = False) -> tuple[int, int]:
        """Remove a result, wholly, or with `dry_run` only say its number of files and their bytes.

        Raises:
            NotFoundError: There is no such result.
        """
        folder, _ = self.load(result_name)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        if dry_run:
            return len(sizes), sum(sizes)
        hidden = self.root / tmp_name("removed")
        folder.rename(hidden)
        fsync_dir(self.root)
        shutil.rmtree(hidden)
        return len(sizes), sum(sizes)


def mentions(folder: Path, digests: frozenset[str]) -> bool:
    """Whether a table of a result holds the id of one of these samples, in any of its columns of texts."""
    return bool(digests) and any(table_holds(path, digests) for path in sorted(folder.glob("*.parquet")))


def table_holds(path: Path, digests: frozenset[str]) -> bool:
    """The same of one of its tables."""
    import pyarrow.parquet as pq  # here: who only asks which results there are does not wait for it

    from mld_core.records.format.removals import marks

    with pq.ParquetFile(path) as file:
        texts = [item.name for item in file.schema_arrow if _is_text(item.type)]
        if not texts:
            return False
        return any(
            marks(_flat(column), digests).any()
            for batch in file.iter_batches(columns=texts)
            for column in batch.columns
        )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _flat(column: pa.Array) -> pa.Array:
    """The distinct texts of a column."""
    import pyarrow as pa

    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    return column.dictionary if pa.types.is_dictionary(column.type) else column.unique()


def find_run(store: Store, model_name: str, version_name: str) -> RunKey:
    """Look a run up by its names.

    Raises:
        NotFoundError: The store, the model or the version is not there; the message lists what is.
    """
    runs = store.runs()
    run = RunKey(model_name, version_name)
    if run not in runs:
        raise no_such_run(runs, str(store.root), run)
    return run


def no_such_run(runs: Sequence[RunKey], where: str, run: RunKey) -> NotFoundError:
    """The refusal that lists what is there.

    Args:
        runs: All that whoever asks may see.
        where: What their store is called.
        run: What is not among them.
    """
    if not runs:
        return NotFoundError(
            f"the store {where} holds no runs: trace a run first, or point MLD_HOME to where the records are"
        )
    models = list(dict.fromkeys(one.model_name for one in runs))
    if run.model_name not in models:
        near_by = near(run.model_name, models)
        return NotFoundError(f"no model {run.model_name!r}{near_by} in {where} (models: {known(models)})")
    versions = [one.version_name for one in runs if one.model_name == run.model_name]
    return NotFoundError(
        f"model {run.model_name!r} has no version {run.version_name!r}{near(run.version_name, versions)} "
        f"(versions: {known(versions)})"
    )


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        info = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except UnreachableStoreError:
        raise
    except (OSError, ValueError):
        return None
    return (
        info if isinstance(info, dict) and {"result_name", "completed_at", "passes"} <= info.keys() else None
    )


def _make_durable(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
