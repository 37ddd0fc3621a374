"""Looking a store over, for `mld doctor`: what is damaged, unfinished or of an unknown format."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from mld_core.records.format import names
from mld_core.records.format.attempts import Attempt, RankFolder, choose, list_passes, read_attempt_folder
from mld_core.records.format.layout import RUN_FILE, PassKey, RunKey, Store, subfolders
from mld_core.records.format.manifest import (
    ATTEMPT_FILE,
    FORMAT,
    SEAL_FILE,
    PartInfo,
    UnknownFormatError,
    read_json,
)
from mld_core.records.format.parts import DamagedPartError, file_digest, file_name, open_family
from mld_core.records.write.gc import gc

_Damage = Literal["torn part", "wrong digest", "unknown format", "unreadable manifest"]
Kind = _Damage | Literal["unsealed pass", "lost rows", "leftover"]


@dataclass(frozen=True)
class Finding:
    """One thing to know about a store.

    Attributes:
        kind: what it is.
        severity: "error" = records are damaged or can not be read; "warning" = a reader copes and says so;
            "info".
        path: where.
        message: what was found, what it means, what to do.
    """

    kind: Kind
    severity: Literal["error", "warning", "info"]
    path: Path
    message: str


def check_store(store: Store, run: RunKey | None = None, *, digests: bool = True) -> list[Finding]:
    """Look a store over; changes nothing.

    Args:
        store: the store.
        run: only this run; None = all.
        digests: also compare the SHA-256 of every file (reads everything).

    Returns:
        What was found, by run and path.
    """
    found: list[Finding] = []
    for key in [run] if run is not None else store.runs():
        found += _check_run(store, key, digests)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # unknown formats are findings already
            leftovers = gc(store, key, dry_run=True)
        if leftovers.items:
            text = f"{len(leftovers.items)} leftovers, {leftovers.bytes / 1e6:.1f} MB: see `mld gc`"
            found.append(Finding("leftover", "info", store.run_dir(key), text))
    return found


def _check_run(store: Store, run: RunKey, digests: bool) -> Iterator[Finding]:
    folder = store.run_dir(run)
    info = folder / RUN_FILE
    data = read_json(info)
    if data is None and info.exists():
        text = f"{info} can not be parsed; class names and task are unknown until it is restored"
        yield Finding("unreadable manifest", "error", info, text)
    if data is not None and isinstance(data.get("format"), int) and data["format"] > FORMAT:
        text = f"{info} has format {data['format']}, this release reads up to {FORMAT}; upgrade ml-debugger"
        yield Finding("unknown format", "error", info, text)
    if data is None and not info.exists() and names.is_cut(folder.name):
        text = f"{info} is missing, and the version's name was too long for the folder's; restore it"
        yield Finding("unreadable manifest", "error", info, text)
    for key in list_passes(store, run):
        yield from _check_pass(store, run, key, digests)


def _check_pass(store: Store, run: RunKey, key: PassKey, digests: bool) -> Iterator[Finding]:
    attempts: list[Attempt] = []
    for path in subfolders(store.pass_dir(run, key)):
        yield from _check_manifests(path)
        try:
            attempt = read_attempt_folder(run, key, path)
        except UnknownFormatError as error:
            yield Finding("unknown format", "error", path, str(error))
            continue
        if attempt is not None:
            attempts.append(attempt)
    chosen = choose(attempts, store.generation(run))
    for attempt in attempts:
        for rank in attempt.ranks:
            yield from _check_rank(rank, digests)
    if chosen is not None and not chosen.sealed:
        text = (
            f"{chosen.path}: ranks {chosen.missing_ranks} of {chosen.world_size} have not sealed: "
            "still running or interrupted. Readers take what is there and call it partial"
        )
        yield Finding("unsealed pass", "warning", chosen.path, text)


def _check_manifests(path: Path) -> Iterator[Finding]:
    for folder in subfolders(path):
        for name in (ATTEMPT_FILE, SEAL_FILE):
            manifest = folder / name
            if manifest.exists() and read_json(manifest) is None:
                text = f"{manifest} can not be parsed; what it stood for is not counted"
                yield Finding("unreadable manifest", "error", manifest, text)


def _check_rank(rank: RankFolder, digests: bool) -> Iterator[Finding]:
    whole, torn = rank.parts()
    for reason in torn:
        yield Finding("torn part", "error", rank.path, f"{reason}; its rows are left out")
    for part in whole:
        for family in part.files:
            yield from _check_file(rank.path, part, family, digests)
    losses = rank.sealed.losses if rank.sealed is not None else {}
    for reason, rows in losses.items():
        yield Finding("lost rows", "warning", rank.path, f"{rows} rows were lost while recording: {reason}")


def _check_file(folder: Path, part: PartInfo, family: str, digests: bool) -> Iterator[Finding]:
    path = folder / part.name / file_name(family)
    try:
        if digests and file_digest(path) != part.files[family].sha256:
            text = f"{path}: SHA-256 differs from the manifest's: changed or damaged; restore it from a copy"
            yield Finding("wrong digest", "error", path, text)
            return
        with open_family(folder / part.name, family) as file:
            rows = file.metadata.num_rows
    except (OSError, DamagedPartError, pa.ArrowException) as error:
        yield Finding("torn part", "error", path, str(error))
        return
    if rows != part.files[family].rows:
        text = f"{path}: {rows} rows, the manifest says {part.files[family].rows}"
        yield Finding("torn part", "error", path, text)
