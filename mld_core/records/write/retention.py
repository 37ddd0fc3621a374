"""Keeping a store small: dropping feature vectors of older epochs.

Only feature vectors go; logits and all scalars stay. A rank's parts are written anew without them
(mld_core.records.write.reseal). Unsealed ranks are never touched.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mld_core.records.format.attempts import RankFolder, choose, list_attempts, list_passes
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.manifest import (
    FEATURES_DROPPED,
    PartInfo,
    make_dirs,
    work_folder,
)
from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import file_name, open_family, publish, read_family, write_family
from mld_core.records.write.gc import folder_bytes
from mld_core.records.write.reseal import locked, reseal

_KEEP = ("unit", "rank_", "input_id", "det_idx", "logits")
_GB = 1 << 30
# From this share of max_store_gb on, the user is told that pruning is near.
_NEAR = 0.9


@dataclass
class PruneReport:
    """What was pruned: (rank folder, bytes freed), and sizes of the store in bytes."""

    pruned: list[tuple[Path, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    store_bytes: int = 0

    @property
    def freed_bytes(self) -> int:
        """Bytes freed (with dry_run: that would be freed, at most)."""
        return sum(size for _, size in self.pruned)


def has_features(rank: RankFolder) -> bool:
    """Whether a sealed rank still holds feature vectors."""
    sealed = rank.sealed
    return sealed is not None and any(name not in _KEEP for name in sealed.widths)


def drop_features(rank: RankFolder, options: WriterOptions | None = None) -> int:
    """Write a sealed rank anew without its feature vectors.

    Returns:
        Bytes freed; 0 if there was nothing to drop.

    Raises:
        OSError, DamagedPartError: nothing was changed.
    """
    if not has_features(rank):
        return 0
    options = options or WriterOptions()
    with locked(rank.path, wait=False) as mine:
        rank = rank.reread()
        sealed = rank.sealed
        if not mine or sealed is None or not has_features(rank):  # whoever has it writes it anew now
            return 0

        def anew(part: PartInfo, names: Iterator[str]) -> PartInfo:
            return _slim(rank.path, part, next(names), options) if "vectors" in part.files else part

        widths = {name: width for name, width in sealed.widths.items() if name in _KEEP}
        changes = {"widths": widths, "meta": {**sealed.meta, FEATURES_DROPPED: True}}
        made = reseal(rank, anew, lambda _sealed, _parts: changes, options, "prune")
    return sum(part.disk_bytes for part in sealed.parts) - sum(part.disk_bytes for part in made)


def _slim(folder: Path, part: PartInfo, name: str, options: WriterOptions) -> PartInfo:
    """A copy of one part without feature vectors; the files of the other families are linked."""
    with open_family(folder / part.name, "vectors") as file:
        columns = [column for column in file.schema_arrow.names if column in _KEEP]
    table = read_family(folder / part.name, "vectors", columns)
    options.step("prune:part")
    with work_folder(folder, name) as tmp:
        vectors = write_family(tmp / file_name("vectors"), "vectors", table, options)
        for family in part.files:
            if family != "vectors":
                _link(folder / part.name / file_name(family), tmp / file_name(family))
        raw_bytes = max(0, part.raw_bytes - part.files["vectors"].bytes + vectors.bytes)
        info = PartInfo(name=name, files={**part.files, "vectors": vectors}, raw_bytes=raw_bytes)
        publish(tmp, folder / name, info, options)
    return info


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def keep_last_epochs(
    store: Store,
    run: RunKey,
    keep: int,
    *,
    dataset_type: str | None = None,
    rank: int | None = None,
    options: WriterOptions | None = None,
    dry_run: bool = False,
) -> list[tuple[Path, int]]:
    """Drop the feature vectors of all but the last `keep` epochs of each split, by time of sealing.

    Args:
        store: the store.
        run: the run.
        keep: epochs that keep their features; 0 = none.
        dataset_type: only this split; None = all.
        rank: only this rank's folders, so that ranks can each look after their own; None = all.
        options: codec and fsync of the rewritten parts.
        dry_run: only say what would be done.

    Returns:
        (rank folder, bytes freed; with dry_run: size of the vectors).
    """
    done: list[tuple[Path, int]] = []
    epochs: dict[str, dict[int | None, list[RankFolder]]] = {}
    for key in list_passes(store, run, None if dataset_type is None else [dataset_type]):
        for attempt in list_attempts(store, run, key):
            folders = [item for item in attempt.ranks if item.sealed and rank in {None, item.rank}]
            epochs.setdefault(key.dataset_type, {}).setdefault(key.n_epoch, []).extend(folders)
    for of_split in epochs.values():
        sealed = [folders for folders in of_split.values() if folders]
        sealed.sort(key=lambda folders: max(map(_sealed_at, folders)), reverse=True)
        for folders in sealed[keep:]:
            done += [_drop(item, options, dry_run) for item in folders if has_features(item)]
    return done


def _sealed_at(item: RankFolder) -> str:
    return item.sealed.sealed_at if item.sealed is not None else ""


def _drop(item: RankFolder, options: WriterOptions | None, dry_run: bool) -> tuple[Path, int]:
    if not dry_run:
        return item.path, drop_features(item, options)
    parts = item.sealed.parts if item.sealed is not None else []
    return item.path, sum(part.files["vectors"].bytes for part in parts if "vectors" in part.files)


def prune(
    store: Store,
    run: RunKey | None = None,
    *,
    keep_vectors: int | None = 2,
    max_store_gb: float | None = None,
    dry_run: bool = False,
    options: WriterOptions | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> PruneReport:
    """Apply the retention rules.

    First `keep_vectors` to `run` (None = every run). Then, if the store is larger than `max_store_gb` (GiB),
    features are dropped from the oldest sealed pass on, over all runs, until it fits; the newest pass of
    each split keeps its own. A warning is given before anything goes for that reason, and one already from
    90 % on.

    Args:
        store: the store.
        run: whose older epochs are looked at.
        keep_vectors: epochs per split that keep features; None = all.
        max_store_gb: bound of the store in GiB; None = none.
        dry_run: only say what would be done.
        options: codec and fsync of the rewritten parts.
        on_warning: called with each warning, before the fact; they are also in the report.

    Raises:
        ValueError: a negative number. OSError: the disk refused; what was done until then is done.
    """
    if keep_vectors is not None and keep_vectors < 0:
        raise ValueError(f"keep_vectors={keep_vectors}: expected 0 or more, or None to keep all")
    if max_store_gb is not None and max_store_gb <= 0:
        raise ValueError(f"max_store_gb={max_store_gb}: expected a number above 0, or None for no bound")
    report = PruneReport()

    def warn(message: str) -> None:
        report.warnings.append(message)
        if on_warning is not None:
            on_warning(message)

    if keep_vectors is not None:
        for key in [run] if run is not None else store.runs():
            report.pruned += keep_last_epochs(store, key, keep_vectors, options=options, dry_run=dry_run)
    if max_store_gb is not None:
        _fit(store, int(max_store_gb * _GB), report, warn, options, dry_run)
    report.store_bytes = folder_bytes(store.root)
    return report


def _fit(
    store: Store,
    limit: int,
    report: PruneReport,
    warn: Callable[[str], None],
    options: WriterOptions | None,
    dry_run: bool,
) -> None:
    make_dirs(store.root)
    size = folder_bytes(store.root) - (report.freed_bytes if dry_run else 0)
    if size <= limit:
        if size > _NEAR * limit:
            warn(
                f"{store.root} holds {size / _GB:.2f} of {limit / _GB:g} GiB; features of old passes go next"
            )
        return
    warn(
        f"{store.root} holds {size / _GB:.2f} GiB, more than max_store_gb={limit / _GB:g}: features of the "
        "oldest passes are dropped now (logits and scalars stay)"
    )
    pruned = {path for path, _ in report.pruned}
    for folder in _oldest_first(store):
        if size <= limit:
            return
        if folder.path in pruned or not has_features(folder):
            continue
        path, freed = _drop(folder, options, dry_run)
        report.pruned.append((path, freed))
        size -= freed
    if size > limit:
        warn(
            f"{store.root} still holds {size / _GB:.2f} GiB, above max_store_gb={limit / _GB:g}; run "
            "`mld gc`, delete runs that are no longer needed, or raise the bound"
        )


def _oldest_first(store: Store) -> list[RankFolder]:
    """The sealed rank folders of the store by time of sealing, without the newest pass of each split."""
    found: list[RankFolder] = []
    for run in store.runs():
        sealed: dict[PassKey, list[RankFolder]] = {}
        newest: dict[str, tuple[str, PassKey]] = {}
        for key in list_passes(store, run):
            attempts = list_attempts(store, run, key)
            chosen = choose(attempts, store.generation(run))
            when = chosen.sealed_at if chosen is not None else None
            if when is not None and when > newest.get(key.dataset_type, ("", key))[0]:
                newest[key.dataset_type] = when, key
            sealed[key] = [rank for attempt in attempts for rank in attempt.ranks if rank.sealed]
        spared = {key for _, key in newest.values()}
        found += [rank for key, ranks in sealed.items() if key not in spared for rank in ranks]
    return sorted(found, key=lambda rank: (_sealed_at(rank), str(rank.path)))
