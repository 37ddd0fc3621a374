"""Joining stores that were written on several machines: the union of their attempts.

A rank folder is copied whole: under a `.tmp` name, fsynced, then renamed. The same folder in both stores is
skipped; one that is sealed in the source and not in the target replaces it; anything else is a conflict,
which is reported and leaves the target as it was. Only records of the source's current generation are taken,
and they join the target's current generation: `force_table_recreate` holds for the store in which it was
called.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mld_core.records.format.attempts import (
    RankFolder,
    list_attempts,
    list_passes,
    list_splits,
    read_rank,
)
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import (
    ATTEMPT_FILE,
    SEAL_FILE,
    PartInfo,
    UnknownFormatError,
    fsync_dir,
    make_dirs,
    tmp_name,
    work_folder,
    write_json,
)
from mld_core.records.format.removals import REMOVED, Removals
from mld_core.records.write.gc import remove

_FACTS = ("task", "class_names", "n_class", "architecture_hash", "features")


@dataclass
class MergeReport:
    """Rank folders copied and skipped as identical, and what could not be joined."""

    copied: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def merge(stores: Iterable[Store | str | Path], into: Store | str | Path) -> MergeReport:
    """Copy what `stores` hold into `into`.

    Args:
        stores: the sources; they are only read.
        into: the target; created if missing.

    Returns:
        What was done.

    Raises:
        ValueError: a source is missing or is the target itself. OSError: a copy failed; nothing half-copied
            counts.
    """
    target = into if isinstance(into, Store) else Store(into)
    sources = [item if isinstance(item, Store) else Store(item) for item in stores]
    for source in sources:
        if not source.root.is_dir():
            raise ValueError(f"{source.root} is no folder; give the root of a store")
        if source.root.resolve() == target.root.resolve():
            raise ValueError(f"{source.root} is the target itself; leave it out of the sources")
    report = MergeReport()
    for source in sources:
        for run in source.runs():
            _merge_run(source, target, run, report)
    return report


def _merge_run(source: Store, target: Store, run: RunKey, report: MergeReport) -> None:
    theirs = source.run_info(run)
    ours = target.run_info(run)
    for fact in _FACTS:
        if fact in theirs and fact in ours and theirs[fact] != ours[fact]:
            report.conflicts.append(
                f"{target.run_dir(run)}: {fact} is {ours[fact]!r} here, {theirs[fact]!r} in {source.root}; "
                "the value here was kept"
            )
    target.ensure_run(run, {name: value for name, value in theirs.items() if name != "generation"})
    generation = target.generation(run)
    _merge_removals(source, target, run)
    for key in list_passes(source, run):
        for attempt in list_attempts(source, run, key):
            if attempt.generation < source.generation(run):
                continue
            for rank in attempt.ranks:
                place = target.rank_dir(run, key, attempt.name, rank.rank)
                _merge_rank(rank, place, generation, report)


def _merge_removals(source: Store, target: Store, run: RunKey) -> None:
    """What was removed in one store is removed in both."""
    theirs, ours = Removals(source, run), Removals(target, run)
    for split in (None, *list_splits(source, run)):
        ours.append(theirs.of_split(split) if split is not None else theirs.everywhere(), split)


def _digests(parts: Iterable[PartInfo]) -> list[dict[str, str]]:
    return [{family: info.sha256 for family, info in part.files.items()} for part in parts]


def _removed(rank: RankFolder) -> list[str]:
    return list(rank.sealed.meta.get(REMOVED) or ()) if rank.sealed is not None else []


def _same_origin(one: RankFolder, other: RankFolder) -> bool:
    return dataclasses.replace(one.opened, generation=0) == dataclasses.replace(other.opened, generation=0)


def _merge_rank(rank: RankFolder, place: Path, generation: int, report: MergeReport) -> None:
    if not os.path.lexists(place):
        _copy(rank, place, generation)
        report.copied.append(place)
        return
    try:
        there = read_rank(place)
    except UnknownFormatError as error:
        report.conflicts.append(str(error))
        return
    if there is None or not _same_origin(rank, there):
        report.conflicts.append(
            f"{place} is there already and of another origin than {rank.path}; it was kept"
        )
        return
    theirs, ours = _digests(rank.parts()[0]), _digests(there.parts()[0])
    if (rank.sealed is None or there.sealed is not None) and theirs == ours:
        report.skipped.append(place)
    elif there.sealed is None and (rank.sealed is not None or theirs[: len(ours)] == ours):
        # The same process wrote both; the source is the later state.
        _copy(rank, place, generation)
        report.copied.append(place)
    elif (
        # the same rows but for samples that are removed
        _removed(rank) != _removed(there)
        or (rank.sealed is None and (there.sealed is not None or ours[: len(theirs)] == theirs))
    ):
        report.skipped.append(place)
    else:
        report.conflicts.append(
            f"{place} and {rank.path} hold different rows of the same rank; the first was kept"
        )


def _copy(rank: RankFolder, place: Path, generation: int) -> None:
    """Copy what counts of a rank folder; what is at `place` goes once the copy is whole."""
    make_dirs(place.parent)
    with work_folder(place.parent, "merge") as tmp:
        for part in rank.parts()[0]:
            shutil.copytree(rank.path / part.name, tmp / part.name)
        opened = dataclasses.replace(rank.opened, generation=generation)
        write_json(tmp / ATTEMPT_FILE, dataclasses.asdict(opened))
        if rank.sealed is not None:
            sealed = dataclasses.replace(rank.sealed, attempt=opened)
            write_json(tmp / SEAL_FILE, dataclasses.asdict(sealed))
        _sync(tmp)
        old = place.parent / tmp_name("merge-old")
        if place.exists():
            place.rename(old)
        tmp.rename(place)
        fsync_dir(place.parent)
        if old.exists():
            remove(old)


def _sync(folder: Path) -> None:
    for path, _, files in os.walk(folder):
        for name in files:
            with Path(path, name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_dir(Path(path))
