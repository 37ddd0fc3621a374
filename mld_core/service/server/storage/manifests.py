"""What a rank's manifest (seal.json) must be. Read in the limited check process: it comes from strangers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mld_core.records.format.manifest import UnknownFormatError, attempt_from_json
from mld_core.records.format.schema import FAMILIES
from mld_core.service.protocol import SHA256
from mld_core.service.server.json_text import loads

MAX_VALUES = 4_000_000
"""Members and items of a manifest: ten thousands of parts have some hundred thousand."""

_MAX_OPENING = 64 << 10
_MAX_WORLD = 100_000
_MAX_INT = 1 << 60
_MAX_NAME = 300
_ATTEMPT = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,110}-\d{3,6}")
_PART = re.compile(r"(part|merged|slim)-\d{1,12}")
_PLACE = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")


class NoManifestError(ValueError):
    """It is no manifest: where, what stands there, what was expected."""

    def __init__(self, where: str, value: Any, expectation: str) -> None:
        super().__init__(f"{where}: expected {expectation}")
        shown = value if isinstance(value, int | float | None) else str(value)[:200]
        self.facts = [where, shown, expectation]


@dataclass(frozen=True)
class NamedFile:
    """One file a manifest names."""

    part: str
    family: str
    sha256: str
    bytes: int
    rows: int


def read_manifest(text: bytes) -> dict[str, Any]:
    """What the server needs of a seal.json.

    Returns:
        `opening` (its attempt.json), `files` (the members of NamedFile, as lists) and `rows` by family.

    Raises:
        NoManifestError: it is none.
    """
    manifest = _loaded(text)
    opening = manifest.get("attempt")
    if not isinstance(opening, dict):
        raise NoManifestError("manifest.attempt", opening, "the opening manifest in the seal")
    return _summary(manifest, opening)


def read_old_seal(text: bytes) -> dict[str, Any]:
    """The same of the body of a seal as protocol 1.0 sends it; with it `manifest`, its seal.json as text.

    Raises:
        NoManifestError: it is none, or its parts contradict each other.
    """
    body = _loaded(text)
    manifest, opening = body.get("manifest"), body.get("opening")
    for name, value in (("manifest", manifest), ("opening", opening)):
        if not isinstance(value, dict):
            raise NoManifestError(name, value, "an object")
    assert isinstance(manifest, dict)
    assert isinstance(opening, dict)
    own = manifest.get("attempt")
    if not isinstance(own, dict):
        raise NoManifestError("manifest.attempt", own, "the opening manifest in the seal")
    for where, data in (("manifest.attempt", own), ("opening", opening)):
        for name in _PLACE:
            if data.get(name) != body.get(name):
                raise NoManifestError(
                    f"{where}.{name}", data.get(name), f"{body.get(name)!r}, as the request says"
                )
    for name in ("model_name", "version_name", "world_size"):
        if own.get(name) != opening.get(name):
            raise NoManifestError(
                f"opening.{name}", opening.get(name), f"{own.get(name)!r}, as in the manifest"
            )
    return {**_summary(manifest, opening), "manifest": json.dumps(manifest, separators=(",", ":"))}


def _loaded(text: bytes) -> dict[str, Any]:
    try:
        found = loads(text, MAX_VALUES)
    except ValueError as error:
        raise NoManifestError("manifest", None, f"a JSON object; {error}") from None
    if not isinstance(found, dict):
        raise NoManifestError("manifest", None, "a JSON object")
    return found


def _summary(manifest: Mapping[str, Any], opening: dict[str, Any]) -> dict[str, Any]:
    for name in ("format", "sealed_at", "rows"):
        if name not in manifest:
            raise NoManifestError(f"manifest.{name}", None, "a member of every seal.json")
    _check_opening(opening)
    own = manifest["attempt"]
    _check_opening(own)
    files = _files(manifest)
    rows: dict[str, int] = {}
    for one in files:
        rows[one.family] = rows.get(one.family, 0) + one.rows
    told = manifest["rows"]
    if not isinstance(told, dict) or {name: count for name, count in told.items() if count} != {
        name: count for name, count in rows.items() if count
    }:
        raise NoManifestError("manifest.rows", json.dumps(told)[:100], f"the sums over the parts: {rows}")
    listed = [[one.part, one.family, one.sha256, one.bytes, one.rows] for one in files]
    return {"opening": opening, "files": listed, "rows": rows}


def _check_opening(opening: dict[str, Any]) -> None:
    try:
        attempt_from_json(opening, Path("manifest.attempt"))
    except UnknownFormatError:
        raise NoManifestError(
            "manifest.format", opening.get("format"), "a format this server knows"
        ) from None
    except ValueError:
        raise NoManifestError("manifest.attempt", None, "the members of an attempt.json") from None
    for name in ("model_name", "version_name", "dataset_type"):
        value = opening.get(name)
        if (
            not isinstance(value, str)
            or not 0 < len(value) <= _MAX_NAME
            or "\x00" in value
            or not _is_text(value)
        ):
            raise NoManifestError(
                f"manifest.attempt.{name}", value, f"a text of at most {_MAX_NAME} characters"
            )
    epoch = opening.get("n_epoch")
    if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or abs(epoch) >= 1 << 31):
        raise NoManifestError("manifest.attempt.n_epoch", epoch, "a whole number, or null")
    attempt = opening.get("attempt")
    if not isinstance(attempt, str) or _ATTEMPT.fullmatch(attempt) is None:
        raise NoManifestError("attempt", attempt, "<launch id>-<restart>, as the recorder names it")
    for name in ("pass_no", "rank"):
        if _whole(opening, name, "manifest.attempt") >= 1 << 31:
            raise NoManifestError(f"manifest.attempt.{name}", opening[name], "a number below 2^31")
    world_size = _whole(opening, "world_size", "manifest.attempt")
    if not opening["rank"] < world_size <= _MAX_WORLD:
        raise NoManifestError(
            "world_size", world_size, f"more than rank {opening['rank']}, at most {_MAX_WORLD}"
        )
    if len(json.dumps(opening)) > _MAX_OPENING:
        raise NoManifestError("manifest.attempt", None, f"at most {_MAX_OPENING} bytes of JSON")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _whole(data: Mapping[str, Any], name: str, where: str) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_INT:
        raise NoManifestError(f"{where}.{name}", value, "a whole number of at least 0")
    return value


def _files(manifest: Mapping[str, Any]) -> list[NamedFile]:
    parts = manifest.get("parts")
    if not isinstance(parts, list):
        raise NoManifestError("manifest.parts", parts, "a list of parts")
    found: list[NamedFile] = []
    names: set[str] = set()
    for part in parts:
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str) or _PART.fullmatch(name) is None or name in names:
            raise NoManifestError("manifest.parts.name", name, "part-<n>, merged-<n> or slim-<n>, each once")
        names.add(name)
        files = part.get("files")
        if not isinstance(files, dict) or not files:
            raise NoManifestError(f"manifest.parts.{name}.files", files, "the part's files by family")
        found += [_file(name, family, info) for family, info in files.items()]
    return found


def _file(part: str, family: str, info: Any) -> NamedFile:
    if family not in FAMILIES:
        raise NoManifestError(f"manifest.parts.{part}.files", family, f"one of {', '.join(FAMILIES)}")
    sha256 = info.get("sha256") if isinstance(info, dict) else None
    if not isinstance(sha256, str) or SHA256.fullmatch(sha256) is None:
        raise NoManifestError(f"{part}.{family}.sha256", sha256, "64 lower-case hex digits")
    where = f"{part}.{family}"
    return NamedFile(part, family, sha256, _whole(info, "bytes", where), _whole(info, "rows", where))
