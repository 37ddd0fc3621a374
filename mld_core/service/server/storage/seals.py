"""Sealing: a rank's manifest is checked against its blobs and committed with all its files, or not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import UnknownFormatError, attempt_from_json, utc_now
from mld_core.records.format.schema import FAMILIES, TASKS, base_schema
from mld_core.service.protocol import SHA256
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.storage.checks import Checks
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Blob, Pass, Run, Seal, SealFile, new_id

_ATTEMPT = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,110}-\d{3,6}")
_PART = re.compile(r"(part|merged|slim)-\d{1,12}")
_MAX_WORLD = 100_000
_MAX_INT = 1 << 60
_CHUNK = 500
_CHECK_SECONDS = 45.0
_KEYS = frozenset({"unit", "rank_"})


@dataclass(frozen=True)
class NamedFile:
    """One file a manifest names."""

    part: str
    family: str
    sha256: str
    bytes: int
    rows: int


@dataclass(frozen=True)
class SealRequest:
    """A seal whose form has been checked."""

    dataset_type: str
    n_epoch: int | None
    pass_no: int
    attempt: str
    rank: int
    world_size: int
    manifest: dict[str, Any]
    opening: dict[str, Any]
    files: list[NamedFile]
    rows: dict[str, int]

    @property
    def epoch(self) -> str:
        """The epoch as it is stored."""
        return "none" if self.n_epoch is None else str(self.n_epoch)

    @property
    def digest(self) -> str:
        """What makes two seals of a rank the same: the files that count."""
        names = sorted((one.part, one.family, one.sha256, one.rows) for one in self.files)
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def invalid(where: str, value: Any, expectation: str) -> ProblemError:
    """A manifest that is not one."""
    return ProblemError(
        "invalid",
        f"{where}: expected {expectation}",
        value=value,
        expectation=expectation,
        fix="send seal.json and attempt.json of the rank as the writer left them on disk",
    )


def _whole(data: Mapping[str, Any], name: str, where: str) -> int:
    value = data.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_INT:
        raise invalid(f"{where}.{name}", value, "a whole number of at least 0")
    return value


def _files(manifest: Mapping[str, Any]) -> list[NamedFile]:
    parts = manifest.get("parts")
    if not isinstance(parts, list):
        raise invalid("manifest.parts", parts, "a list of parts")
    found: list[NamedFile] = []
    names: set[str] = set()
    for part in parts:
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str) or _PART.fullmatch(name) is None or name in names:
            raise invalid("manifest.parts.name", name, "part-<n>, merged-<n> or slim-<n>, each once")
        names.add(name)
        files = part.get("files")
        if not isinstance(files, dict) or not files:
            raise invalid(f"manifest.parts.{name}.files", files, "the part's files by family")
        found += [_file(name, family, info) for family, info in files.items()]
    return found


def _file(part: str, family: str, info: Any) -> NamedFile:
    if family not in FAMILIES:
        raise invalid(f"manifest.parts.{part}.files", family, f"one of {', '.join(FAMILIES)}")
    sha256 = info.get("sha256") if isinstance(info, dict) else None
    if not isinstance(sha256, str) or SHA256.fullmatch(sha256) is None:
        raise invalid(f"{part}.{family}.sha256", sha256, "64 lower-case hex digits")
    where = f"{part}.{family}"
    return NamedFile(part, family, sha256, _whole(info, "bytes", where), _whole(info, "rows", where))


def parse_seal(run: Run, body: Mapping[str, Any]) -> SealRequest:
    """Check the form of a seal and that its manifests agree with it and with the run.

    Raises:
        ProblemError: they do not.
    """
    manifest, opening = body["manifest"], body["opening"]
    own = manifest.get("attempt")
    if not isinstance(own, dict):
        raise invalid("manifest.attempt", own, "the opening manifest in the seal")
    expected = {
        "model_name": run.model_name,
        "version_name": run.version_name,
        **{name: body[name] for name in ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")},
    }
    for where, data in (("manifest.attempt", own), ("opening", opening)):
        for name, value in expected.items():
            if data.get(name) != value:
                raise invalid(f"{where}.{name}", data.get(name), f"{value!r}, as the request and the run say")
    try:
        attempt_from_json(own, Path("manifest.attempt"))
        attempt_from_json(opening, Path("opening"))
    except UnknownFormatError as error:
        raise invalid("manifest.format", own.get("format"), "a format this server knows") from error
    except ValueError as error:
        raise invalid("manifest.attempt", None, "the members of an attempt.json") from error
    if _ATTEMPT.fullmatch(body["attempt"]) is None:
        raise invalid("attempt", body["attempt"], "<launch id>-<restart>, as the recorder names it")
    for name in ("format", "sealed_at", "rows"):
        if name not in manifest:
            raise invalid(f"manifest.{name}", None, "a member of every seal.json")
    return _summed(body, manifest, opening, own)


def _summed(
    body: Mapping[str, Any], manifest: dict[str, Any], opening: dict[str, Any], own: Mapping[str, Any]
) -> SealRequest:
    world_size = _whole(own, "world_size", "manifest.attempt")
    if not body["rank"] < world_size <= _MAX_WORLD or opening.get("world_size") != world_size:
        raise invalid("world_size", world_size, f"more than rank {body['rank']}, at most {_MAX_WORLD}")
    files = _files(manifest)
    rows: dict[str, int] = {}
    for one in files:
        rows[one.family] = rows.get(one.family, 0) + one.rows
    told = manifest["rows"]
    if not isinstance(told, dict) or {name: count for name, count in told.items() if count} != {
        name: count for name, count in rows.items() if count
    }:
        raise invalid("manifest.rows", json.dumps(told)[:100], f"the sums over the parts: {rows}")
    names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
    return SealRequest(
        **{name: body[name] for name in names},
        world_size=world_size,
        manifest=manifest,
        opening=opening,
        files=files,
        rows=rows,
    )


def _blobs(session: Session, organization_pk: int, digests: Iterable[str]) -> dict[str, Blob]:
    wanted = sorted(set(digests))
    found: dict[str, Blob] = {}
    for start in range(0, len(wanted), _CHUNK):
        query = select(Blob).where(
            Blob.organization_pk == organization_pk, Blob.sha256.in_(wanted[start : start + _CHUNK])
        )
        found.update({blob.sha256: blob for blob in session.scalars(query)})
    return found


def _place(run: Run, request: SealRequest) -> tuple[Any, ...]:
    """What is true of the pass a seal belongs to."""
    where = (Pass.run_pk == run.pk, Pass.dataset_type == request.dataset_type, Pass.epoch == request.epoch)
    return (*where, Pass.pass_no == request.pass_no)


class Sealer:
    """Commits seals."""

    def __init__(self, database: Database, checks: Checks) -> None:
        self._database = database
        self._checks = checks

    def seal(self, principal: Principal, run: Run, request: SealRequest) -> tuple[Seal, bool]:
        """Commit a seal; (its row, whether it is new).

        Raises:
            ProblemError: files are missing, unchecked or refused, or the rank is sealed with other files.
        """
        stored = self._existing(run, request)
        if stored is not None:
            return stored, False
        blobs = self._checked(principal, request)
        refused = _compare(request, blobs, str(run.info.get("task") or "classification"))
        if refused:
            raise ProblemError(
                "refused-part",
                f"{len(refused)} of {len(request.files)} files are refused: {refused[0]['reason']}",
                value=refused[0]["sha256"],
                expectation="Parquet files as the recorder writes them, with the rows the manifest says",
                fix="upload the files of the records as they are; `mld doctor` finds damaged ones",
                refused=refused[:100],
            )
        try:
            return self._commit(principal, run, request), True
        except IntegrityError:  # somebody sealed it, made the pass, or removed a file, a moment ago
            stored = self._existing(run, request)
            return (stored, False) if stored is not None else (self._commit(principal, run, request), True)

    def _existing(self, run: Run, request: SealRequest) -> Seal | None:
        query = (
            select(Seal)
            .join(Pass, Pass.pk == Seal.pass_pk)
            .where(*_place(run, request), Seal.attempt == request.attempt, Seal.rank_no == request.rank)
        )
        with self._database.read() as session:
            found = session.scalar(query)
        if found is not None and found.digest != request.digest:
            raise ProblemError(
                "seal-conflict",
                f"rank {request.rank} of attempt {request.attempt} is sealed with other files",
                value=request.attempt,
                expectation="the files of the first seal",
                fix="nothing: the first seal stands",
            )
        return found

    def _checked(self, principal: Principal, request: SealRequest) -> dict[str, Blob]:
        digests = {one.sha256 for one in request.files}
        with self._database.read() as session:
            blobs = _blobs(session, principal.organization_pk, digests)
        if digests - set(blobs):
            raise _missing(digests - set(blobs), len(digests))
        waiting = [sha256 for sha256, blob in blobs.items() if blob.state == "stored"]
        if not waiting:
            return blobs
        self._checks.wait(principal.organization_pk, principal.organization_id, waiting, _CHECK_SECONDS)
        with self._database.read() as session:
            blobs |= _blobs(session, principal.organization_pk, waiting)
        left = {sha256 for sha256, blob in blobs.items() if blob.state == "stored"}
        gone = {sha256 for sha256 in left if not self._checks.there(principal.organization_id, sha256)}
        if gone:
            raise _missing(gone, len(digests))
        if left:
            raise _pending(len(left), len(digests))
        return blobs

    def _commit(self, principal: Principal, run: Run, request: SealRequest) -> Seal:
        digests = {one.sha256 for one in request.files}
        with self._database.write() as session:
            # Once more: what nobody needed may have been removed since it was looked at.
            blobs = _blobs(session, principal.organization_pk, digests)
            if digests - set(blobs):
                raise _missing(digests - set(blobs), len(digests))
            left = sum(blob.state == "stored" for blob in blobs.values())
            if left:
                raise _pending(left, len(digests))
            owner = session.scalar(select(Pass).where(*_place(run, request)))
            if owner is None:
                names = {
                    "dataset_type": request.dataset_type,
                    "epoch": request.epoch,
                    "pass_no": request.pass_no,
                }
                owner = Pass(id=new_id("pass"), run_pk=run.pk, **names, created_at=utc_now())
                session.add(owner)
                session.flush()
            seal = Seal(
                id=new_id("seal"),
                pass_pk=owner.pk,
                attempt=request.attempt,
                rank_no=request.rank,
                world_size=request.world_size,
                manifest=request.manifest,
                opening=request.opening,
                rows=request.rows,
                bytes=sum(one.bytes for one in request.files),
                digest=request.digest,
                created_at=utc_now(),
            )
            session.add(seal)
            session.flush()
            rows = [
                {"blob_pk": blobs[one.sha256].pk, "part": one.part, "family": one.family, "rows": one.rows}
                for one in request.files
            ]
            if rows:
                session.execute(insert(SealFile).values(seal_pk=seal.pk), rows)
        return seal


def _missing(digests: set[str], total: int) -> ProblemError:
    missing = sorted(digests)
    return ProblemError(
        "missing-blobs",
        f"{len(missing)} of {total} files are not there; nothing was sealed",
        value=missing[0],
        expectation="all files of the manifest, complete",
        fix="upload the digests in `missing`, then seal again",
        missing=missing,
    )


def _pending(count: int, total: int) -> ProblemError:
    return ProblemError(
        "check-pending",
        f"{count} of {total} files are not checked yet",
        value=count,
        expectation="checked files",
        fix="send the seal again",
        retry_after=2,
    )


def _compare(request: SealRequest, blobs: Mapping[str, Blob], task: str) -> list[dict[str, str]]:
    """The files that are not what the manifest says, or not Parquet we accept."""
    refused = []
    schemas = {
        family: base_schema(family, task if task in TASKS else "classification") for family in FAMILIES
    }
    for one in request.files:
        blob = blobs[one.sha256]
        reason = _reason(one, blob, schemas[one.family])
        if reason:
            refused.append({"sha256": one.sha256, "part": one.part, "family": one.family, "reason": reason})
    return refused


def _reason(one: NamedFile, blob: Blob, schema: pa.Schema) -> str:
    facts = blob.facts or {}
    if blob.state == "refused":
        return str(facts.get("reason", "it was refused"))
    if blob.size != one.bytes:
        return f"it has {blob.size} bytes, the manifest says {one.bytes}"
    if facts.get("rows") != one.rows:
        return f"it has {facts.get('rows')} rows, the manifest says {one.rows}"
    return schema_reason(dict(facts.get("schema", [])), schema)


def schema_reason(columns: Mapping[str, str], schema: pa.Schema) -> str:
    """Why columns (name -> Arrow type as text) are not those of a family; empty if they are."""
    for item in schema:
        kind = columns.get(item.name)
        if kind is None:
            if item.name in _KEYS:
                return f"it has no column {item.name!r}"
        elif kind not in _same(item.type):
            return f"column {item.name!r} is {kind}, expected {item.type}"
    return ""


def _same(kind: pa.DataType) -> set[str]:
    """The types as which a column may come back from Parquet, as text."""
    text = str(kind)
    if pa.types.is_dictionary(kind):
        return {text, "string", "dictionary<values=string, indices=int8, ordered=0>"}
    return {text, text.replace("item:", "element:"), text.replace("element:", "item:")}
