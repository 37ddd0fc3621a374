"""What is to be uploaded: the sealed ranks of a store. Standard library only: every training loads it.

A rank counts as uploaded to one organization of one service when its folder holds that service's note,
written (temporary name, rename) after the service confirmed the seal. A note is only a shortcut: without it
the seal is asked for again, which the service answers with "there already".

A pass that continues an earlier attempt is made of that attempt's rows too. That one was cut and never
sealed; its finished parts are uploaded with the seal that continues it, under a manifest made here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mld_core.records.format.layout import RunKey, Store, parse_epoch, parse_pass, subfolders
from mld_core.records.format.manifest import (
    ATTEMPT_FILE,
    FORMAT,
    PART_FILE,
    SEAL_FILE,
    AttemptManifest,
    UnknownFormatError,
    attempt_from_json,
    read_json,
    read_seal,
    utc_now,
)

_RANK = "rank-"
_PART = "part-"
_LONGEST_CHAIN = 1000


@dataclass(frozen=True)
class LocalFile:
    """One Parquet file of a sealed rank, as its manifest says."""

    path: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class SealedRank:
    """One rank of one attempt that can be uploaded.

    Attributes:
        folder: its folder.
        opened: its opening manifest.
        opening: the same as JSON, as it is on disk.
        manifest: seal.json.
        text: the same as text, as it is on disk.
        files: what the manifest lists.
        earlier: folders of the attempts it continues, newest first; they come first.
    """

    folder: Path
    opened: AttemptManifest
    opening: dict[str, Any]
    manifest: dict[str, Any]
    text: bytes
    files: tuple[LocalFile, ...]
    earlier: tuple[Path, ...] = ()

    @property
    def run(self) -> RunKey:
        """The run it belongs to."""
        return RunKey(self.opened.model_name, self.opened.version_name)

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def label(self) -> str:
        """What a person calls it."""
        opened = self.opened
        epoch = "none" if opened.n_epoch is None else opened.n_epoch
        return (
            f"{opened.model_name}/{opened.version_name} {opened.dataset_type} epoch {epoch} "
            f"pass {opened.pass_no} rank {opened.rank}"
        )


def service_id(url: str, organization_id: str) -> str:
    """A short name for one organization of one service.

    >>> len(service_id("http://127.0.0.1:8765", "org_1"))
    12
    """
    return hashlib.sha256(f"{url}\n{organization_id}".encode()).hexdigest()[:12]


def note_path(folder: Path, service: str) -> Path:
    """The note in a rank's folder that it was uploaded."""
    return folder / f".uploaded-{service}.json"


def is_noted(folder: Path, service: str) -> bool:
    """Whether a rank is known to be uploaded."""
    return note_path(folder, service).is_file()


def read_sealed(folder: Path) -> SealedRank | None:
    """A sealed rank's folder; None if it is not sealed, is gone, or was written by a newer release."""
    try:
        sealed = read_seal(folder)
    except UnknownFormatError:
        return None
    try:
        text = (folder / SEAL_FILE).read_bytes()
        manifest = json.loads(text)
    except (OSError, ValueError):
        return None
    if sealed is None or not isinstance(manifest, dict):
        return None
    files = tuple(
        LocalFile(folder / part.name / f"{family}.parquet", info.sha256, info.bytes)
        for part in sealed.parts
        for family, info in part.files.items()
    )
    opening = read_json(folder / ATTEMPT_FILE) or dict(manifest["attempt"])
    earlier = tuple(_earlier(folder, sealed.attempt))
    return SealedRank(folder, sealed.attempt, opening, manifest, text, files, earlier)


def _earlier(folder: Path, opened: AttemptManifest) -> Iterator[Path]:
    """Unsealed rank folders of the attempts this one continues, those this rank has to care for."""
    passes, rank, world_size = folder.parent.parent, opened.rank, opened.world_size
    before, seen = opened.continues, {folder.parent.name}
    while before and "/" not in before and before not in seen and len(seen) < _LONGEST_CHAIN:
        seen.add(before)
        following: str | None = None
        for path in subfolders(passes / before):
            number = _rank_of(path)
            found = _opened(path) if number is not None else None
            if found is None or number is None:
                continue
            following = following or found.continues
            if number % world_size == rank and not (path / SEAL_FILE).is_file():
                yield path
        before = following


def read_unsealed(folder: Path) -> SealedRank | None:
    """The finished parts of a rank that was cut, with a manifest as if it were sealed; None without any."""
    opened, opening = _opened(folder), read_json(folder / ATTEMPT_FILE)
    if opened is None or opening is None:
        return None
    parts: list[dict[str, Any]] = []
    files: list[LocalFile] = []
    rows: dict[str, int] = {}
    for path in subfolders(folder):
        part = read_json(path / PART_FILE) if path.name.startswith(_PART) else None
        if part is None or not isinstance(part.get("files"), dict):
            continue
        listed = [
            LocalFile(path / f"{family}.parquet", str(info["sha256"]), int(info["bytes"]))
            for family, info in part["files"].items()
        ]
        if all(file.path.is_file() and file.path.stat().st_size == file.bytes for file in listed):
            files += listed
            facts: dict[str, Any] = {name: part[name] for name in ("files", "raw_bytes") if name in part}
            parts.append({**facts, "name": path.name})
            for family, info in part["files"].items():
                rows[family] = rows.get(family, 0) + int(info["rows"])
    if not parts:
        return None
    manifest = {
        "attempt": opening,
        "parts": parts,
        "rows": rows,
        "losses": {},
        "widths": {},
        "sealed_at": opened.started_at or utc_now(),
        "meta": {"cut": True},
        "format": FORMAT,
    }
    return SealedRank(folder, opened, opening, manifest, json.dumps(manifest).encode(), tuple(files))


def _opened(folder: Path) -> AttemptManifest | None:
    path = folder / ATTEMPT_FILE
    data = read_json(path)
    try:
        return attempt_from_json(data, path) if data is not None else None
    except ValueError:  # of a newer release, or not ours
        return None


def _rank_of(folder: Path) -> int | None:
    number = folder.name.removeprefix(_RANK)
    return int(number) if folder.name.startswith(_RANK) and number.isdigit() else None


def sealed_folders(store: Store, run: RunKey) -> Iterator[Path]:
    """The folders of all sealed ranks of a run's current generation, older passes first."""
    generation = store.generation(run)
    found: list[tuple[str, str, Path]] = []
    for split in subfolders(store.run_dir(run)):
        for epoch in subfolders(split):
            if parse_epoch(epoch.name) is None:
                continue
            for one_pass in subfolders(epoch):
                if parse_pass(one_pass.name) is not None:
                    found += _of_pass(one_pass, generation)
    yield from (path for _, _, path in sorted(found))


def _of_pass(folder: Path, generation: int) -> Iterator[tuple[str, str, Path]]:
    for attempt in subfolders(folder):
        for rank in subfolders(attempt):
            if _rank_of(rank) is None or not (rank / SEAL_FILE).is_file():
                continue
            seal = read_json(rank / SEAL_FILE) or {}
            opened = seal.get("attempt")
            if isinstance(opened, dict) and int(opened.get("generation") or 0) >= generation:
                yield str(seal.get("sealed_at", "")), str(rank), rank
