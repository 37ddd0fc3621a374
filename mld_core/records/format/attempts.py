"""What lies in a store: passes, their attempts, the ranks of an attempt, and which attempt counts."""

import errno
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mld_core.records.format import names
from mld_core.records.format.bucket import each
from mld_core.records.format.layout import PassKey, RunKey, Store, parse_epoch, parse_pass, subfolders
from mld_core.records.format.manifest import (
    AttemptManifest,
    PartInfo,
    SealManifest,
    UnknownFormatError,
    read_attempt,
    read_seal,
)
from mld_core.records.format.parts import read_part_info, torn_reason
from mld_core.records.format.schema import FIRST_HASH_KIND, HASH_KIND

_RANK = re.compile(r"rank-(\d+)")
_PART = re.compile(r"part-(\d+)")


@dataclass
class RankFolder:
    """One rank of one attempt, as it was found."""

    path: Path
    rank: int
    opened: AttemptManifest
    sealed: SealManifest | None

    @property
    def hash_kind(self) -> str:
        """How the `input_hash` of its rows was made."""
        sealed = {} if self.sealed is None else self.sealed.meta
        return str(sealed.get(HASH_KIND) or self.opened.meta.get(HASH_KIND) or FIRST_HASH_KIND)

    def parts(self) -> tuple[list[PartInfo], list[str]]:
        """The parts that count, in order, and why others do not.

        With a seal: those it lists. Without: the complete `part-*` folders.
        """
        listed = self.sealed.parts if self.sealed is not None else self._found()
        whole, torn = [], []
        for part, (info, reason) in zip(listed, each(self._look, listed, self.path), strict=True):
            if reason is None and info is not None:
                whole.append(info)
            else:
                torn.append(reason or part.name)
        return whole, torn

    def _look(self, part: PartInfo) -> tuple[PartInfo | None, str | None]:
        info = part if self.sealed is not None else read_part_info(self.path / part.name)
        return info, torn_reason(self.path / part.name, info)

    def _found(self) -> list[PartInfo]:
        found = [path.name for path in subfolders(self.path) if _PART.fullmatch(path.name)]
        return [PartInfo(name, {}) for name in sorted(found, key=lambda name: int(name[5:]))]

    def reread(self) -> "RankFolder":
        """The same folder as it is now.

        Raises:
            FileNotFoundError: it was moved or removed.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "these records were moved or removed; select again", str(self.path)
            )
        return RankFolder(self.path, self.rank, self.opened, read_seal(self.path))

    def settled(self) -> tuple["RankFolder", list[PartInfo], list[str]]:
        """This folder as it is now with its parts, and why others do not count.

        Looks again if the folder was sealed or rewritten while its parts were listed.
        """
        current = self.reread()
        while True:
            parts, torn = current.parts()
            after = current.reread()
            if after.sealed == current.sealed:
                return current, parts, torn
            current = after


@dataclass
class Attempt:
    """One process group's try at a pass."""

    run: RunKey
    key: PassKey
    path: Path
    ranks: list[RankFolder] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The attempt's name; a greater one is newer."""
        return self.path.name

    @property
    def opened(self) -> AttemptManifest:
        """The opening manifest of the lowest rank that is there."""
        return self.ranks[0].opened

    @property
    def world_size(self) -> int:
        """How many ranks belong to it."""
        return max(rank.opened.world_size for rank in self.ranks)

    @property
    def generation(self) -> int:
        """The run's generation when it was opened."""
        return max(rank.opened.generation for rank in self.ranks)

    @cached_property
    def missing_ranks(self) -> list[int]:
        """Ranks that have not sealed."""
        sealed = {rank.rank for rank in self.ranks if rank.sealed is not None}
        return [rank for rank in range(self.world_size) if rank not in sealed]

    @property
    def sealed(self) -> bool:
        """Whether all ranks have sealed."""
        return not self.missing_ranks

    @property
    def sealed_at(self) -> str | None:
        """When the last rank sealed (UTC, ISO 8601), None if unsealed."""
        times = [rank.sealed.sealed_at for rank in self.ranks if rank.sealed is not None]
        return max(times) if self.sealed else None


def read_rank(path: Path) -> RankFolder | None:
    """One rank folder, or None if it is not ours.

    Raises:
        UnknownFormatError: written by a newer release.
    """
    match = _RANK.fullmatch(path.name)
    if match is None:
        return None
    sealed = read_seal(path)
    opened = sealed.attempt if sealed is not None else read_attempt(path)
    return RankFolder(path, int(match[1]), opened, sealed) if opened is not None else None


def read_attempt_folder(run: RunKey, key: PassKey, path: Path) -> Attempt | None:
    """One attempt folder, or None if no rank of it can be read.

    Raises:
        UnknownFormatError: written by a newer release.
    """
    found = [rank for rank in each(read_rank, subfolders(path), path) if rank is not None]
    return Attempt(run, key, path, sorted(found, key=lambda rank: rank.rank)) if found else None


def list_attempts(store: Store, run: RunKey, key: PassKey) -> list[Attempt]:
    """The attempts at one pass that this release can read, oldest first, all generations.

    Attempts of a newer format are left out with a warning.
    """
    found = []
    for folder in subfolders(store.pass_dir(run, key)):
        try:
            attempt = read_attempt_folder(run, key, folder)
        except UnknownFormatError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        if attempt is not None:
            found.append(attempt)
    return found


def list_splits(store: Store, run: RunKey) -> list[str]:
    """The splits of a run, sorted by folder name."""
    found = [_split_name(folder) for folder in subfolders(store.run_dir(run))]
    return [name for name in found if name is not None]


def _split_name(folder: Path) -> str | None:
    if not names.is_cut(folder.name):
        return names.decode(folder.name)
    for path in folder.glob("epoch-*/pass-*/*/rank-*"):
        try:
            opened = read_attempt(path)
        except UnknownFormatError:
            continue
        if opened is not None and names.encode(opened.dataset_type) == folder.name:
            return opened.dataset_type
    return None


def list_passes(
    store: Store,
    run: RunKey,
    splits: Sequence[str] | None = None,
    epochs: tuple[int | None, ...] | None = None,
) -> Iterator[PassKey]:
    """The passes of a run by split, epoch and number.

    Args:
        store: the store.
        run: the run.
        splits: only these; None = all.
        epochs: only these, where None in it is the unknown epoch; None = all.
    """
    wanted = None if splits is None else {names.encode(split) for split in splits}
    for split in list_splits(store, run):
        if wanted is not None and names.encode(split) not in wanted:
            continue
        found = []
        for folder in subfolders(store.split_dir(run, split)):
            epoch = parse_epoch(folder.name)
            if epoch is None or (epochs is not None and epoch[0] not in epochs):
                continue
            numbers = [number for path in subfolders(folder) if (number := parse_pass(path.name)) is not None]
            found += [PassKey(split, epoch[0], number) for number in numbers]
        yield from sorted(found, key=lambda key: (key.n_epoch is not None, key.n_epoch or 0, key.pass_no))


def choose(attempts: list[Attempt], generation: int) -> Attempt | None:
    """The attempt that counts: the newest sealed one, else the newest; older generations never count."""
    current = [attempt for attempt in attempts if attempt.generation >= generation]
    sealed = [attempt for attempt in current if attempt.sealed]
    pool = sealed or current
    return max(pool, key=lambda attempt: attempt.name) if pool else None


def chain(chosen: Attempt, attempts: list[Attempt], generation: int) -> list[tuple[Attempt, int | None]]:
    """The attempts a pass is made of, oldest first, each with the step below which its rows count.

    The chosen attempt comes last, without a limit. One that continues another but does not know from which
    step takes none of its rows: better a hole that is reported than rows that count twice.
    """
    by_name = {attempt.name: attempt for attempt in attempts if attempt.generation >= generation}
    links: list[tuple[Attempt, int | None]] = [(chosen, None)]
    seen = {chosen.name}
    current, limit = chosen, None
    while True:
        before, step = current.opened.continues, current.opened.resume_step
        if before is None or step is None or before in seen or before not in by_name:
            return links[::-1]
        # A row must have been trained before every checkpoint that was resumed from since.
        limit = step if limit is None else min(limit, step)
        current = by_name[before]
        seen.add(before)
        links.append((current, limit))
