"""What people say of samples: verdicts, an append-only family beside the records of a run.

`<run>/.verdicts/<time>-<random>.jsonl`, one JSON object a line. The write protocol: a `Verdicts` that
appends has a file of its own, made exclusively; what one call appends is written with one `write` and made
durable before the call returns. Nothing is rewritten but where a sample is removed (`mld rm`): taking a
verdict back is a line, too. Readers leave out a torn last line (the process was killed in it) and say so. So
two people never write the same file, and what was sent somewhere once is recognised by its `verdict_id`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import fsync_dir, make_dirs, tmp_name, utc_now
from mld_core.records.format.removals import Removals, id_digest
from mld_core.records.store.verdict import (
    Standing,
    Subject,
    Verdict,
    as_members,
    of_members,
    signed,
    standing,
    undoing,
)
from mld_core.records.write.reseal import locked

FOLDER = ".verdicts"


class Verdicts:
    """The verdicts of one run.

    Args:
        store: The store.
        run: The run.

    Example:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> book = Verdicts(store, RunKey("net", "v1"))
        >>> first, = book.append([Verdict("relabel", "val", "17", label=3, given=5, author="ann")])
        >>> book.standing()[Subject("val", "17")].verdict.label
        3
        >>> _ = book.undo([first])
        >>> book.standing()
        {}
    """

    def __init__(self, store: Store, run: RunKey) -> None:
        self.store = store
        self.run = run
        self.folder = store.run_dir(run) / FOLDER
        self._mine: Path | None = None

    def append(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Write verdicts down; they are durable when this returns.

        Returns:
            The verdicts as they stand in the file, with author, time and id.

        Raises:
            OSError: The disk refuses.
        """
        made = signed(verdicts)
        self._put(made)
        return made

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the files: differs whenever `read` may say something else."""
        files = sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []
        return tuple((path.name, path.stat().st_size) for path in files)

    def take_in(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Write verdicts down as they are: those of others, from elsewhere, that are not here yet.

        Returns:
            Those that were written.

        Raises:
            OSError: The disk refuses.
        """
        known = {one.verdict_id for one in self.read()[0]}
        new = [one for one in verdicts if one.verdict_id not in known and not self._is_removed(one)]
        self._put(new)
        return new

    def _is_removed(self, one: Verdict) -> bool:
        gone = Removals(self.store, self.run).of_split(one.dataset_type)
        return bool(gone) and id_digest(one.input_id) in gone

    def _put(self, verdicts: Iterable[Verdict]) -> None:
        lines = "".join(json.dumps(as_members(one), ensure_ascii=False) + "\n" for one in verdicts)
        if lines:
            self._write(lines.encode("utf-8", "surrogatepass"))

    def undo(self, verdicts: Iterable[Verdict], *, author: str = "") -> list[Verdict]:
        """Take verdicts back, by lines of their own."""
        return self.append(undoing(verdicts, author))

    def _write(self, data: bytes) -> None:
        if self._mine is None:
            make_dirs(self.folder)
            stamp = utc_now().replace(":", "").replace("-", "").split("+")[0]
            self._mine = self.folder / f"{stamp}-{secrets.token_hex(3)}.jsonl"
        with locked(self.folder):
            self._append(self._mine, data)

    @staticmethod
    def _append(path: Path, data: bytes) -> None:
        existed = path.exists()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            done = os.write(fd, data)
            if done != len(data):
                raise OSError(f"{path}: {done} of {len(data)} bytes written; is the disk full?")
            os.fsync(fd)
        finally:
            os.close(fd)
        if not existed:
            fsync_dir(path.parent)

    def read(self) -> tuple[list[Verdict], list[str]]:
        """All verdicts, oldest first, and what could not be read, in words."""
        found: dict[str, Verdict] = {}
        problems: list[str] = []
        for path in sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else ():
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                try:
                    one = _parse(line)
                except (TypeError, ValueError) as error:
                    problems.append(f"{path.name}, line {number}: not a verdict ({error})")
                    continue
                found[one.verdict_id] = one
        gone = Removals(self.store, self.run)
        removed = {split: gone.of_split(split) for split in {one.dataset_type for one in found.values()}}
        left = [
            one
            for one in found.values()
            if not removed[one.dataset_type] or id_digest(one.input_id) not in removed[one.dataset_type]
        ]
        return sorted(left, key=lambda one: one.at), problems

    def forget(self, input_ids: Iterable[str], dataset_type: str | None = None) -> int:
        """Take what was said of samples out of the files, wholly; how many lines went.

        Raises:
            OSError: The disk refuses; each file is as it was, or without them.
        """
        digests = set(map(id_digest, input_ids))
        if not self.folder.is_dir():
            return 0
        gone = 0
        with locked(self.folder):
            for path in sorted(self.folder.glob("*.jsonl")):
                lines = path.read_bytes().splitlines(keepends=True)
                kept = [line for line in lines if not _is_about(line, digests, dataset_type)]
                if len(kept) < len(lines):
                    gone += len(lines) - len(kept)
                    self._replace(path, b"".join(kept))
        return gone

    @staticmethod
    def _replace(path: Path, data: bytes) -> None:
        tmp = path.parent / tmp_name(path.name)
        with tmp.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(path)
        fsync_dir(path.parent)

    def standing(self, dataset_type: str | None = None) -> dict[Subject, Standing]:
        """What stands of each subject (of one split, or of all)."""
        told, _ = self.read()
        return standing(one for one in told if dataset_type in {None, one.dataset_type})


def _parse(line: bytes) -> Verdict:
    return of_members(json.loads(line.decode("utf-8", "surrogatepass")))


def _is_about(line: bytes, digests: set[str], dataset_type: str | None) -> bool:
    try:
        one = _parse(line)
    except (TypeError, ValueError):
        return False
    return dataset_type in {None, one.dataset_type} and id_digest(one.input_id) in digests


def all_runs(store: Store, model_name: str) -> Iterator[Verdicts]:
    """The verdicts of every version of a model."""
    for run in store.runs():
        if run.model_name == model_name:
            yield Verdicts(store, run)
