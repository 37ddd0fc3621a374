"""The tables. What a client sees of a row is `id`: opaque, random, never a number that counts.

Times are ISO 8601 text in UTC with microseconds, which sorts as time does. JSON is text, so that both
databases keep it to the letter.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from mld_core.records.format.manifest import plain

ID_BYTES = 12


def new_id(kind: str) -> str:
    """A fresh opaque id, e.g. `run_` and 24 hex digits."""
    return f"{kind}_{secrets.token_hex(ID_BYTES)}"


class Json(TypeDecorator[Any]):
    """A JSON value as ASCII text: no NaN, no raw control characters, the same in every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """To text."""
        del dialect
        return None if value is None else json.dumps(plain(value), allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """From text."""
        del dialect
        return None if value is None else json.loads(value)


# SQLite counts up only a column of the very type INTEGER.
_Pk = BigInteger().with_variant(Integer, "sqlite")
_Big = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """All tables of the server."""

    pk: Mapped[int] = mapped_column(_Pk, primary_key=True, autoincrement=True)


class _Named:
    """What a client sees of a row."""

    id: Mapped[str] = mapped_column(String(40), unique=True)
    created_at: Mapped[str] = mapped_column(String(40))


class Organization(_Named, Base):
    """A team: nothing of it is visible to another."""

    __tablename__ = "organizations"

    name: Mapped[str] = mapped_column(String(200), unique=True)
    is_root: Mapped[bool] = mapped_column(default=False)
    blob_bytes: Mapped[int] = mapped_column(_Big, default=0)
    last_job_at: Mapped[str | None] = mapped_column(String(40))


class ApiKey(_Named, Base):
    """A key; only the SHA-256 of its secret is kept (256 random bits: no slow hash is needed)."""

    __tablename__ = "api_keys"

    organization_pk: Mapped[int] = mapped_column(ForeignKey("organizations.pk"))
    name: Mapped[str] = mapped_column(String(200))
    secret_hash: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(100))
    expires_at: Mapped[str | None] = mapped_column(String(40))
    revoked_at: Mapped[str | None] = mapped_column(String(40))
    last_used_at: Mapped[str | None] = mapped_column(String(40))
    person_pk: Mapped[int | None] = mapped_column(ForeignKey("people.pk"))
    """Whose it is: their role says what it may do, not `scopes`. None: nobody's, a job's perhaps."""


class Person(_Named, Base):
    """A person of an organization; `models` are patterns of the names of those they may see."""

    __tablename__ = "people"
    __table_args__ = (UniqueConstraint("organization_pk", "name"),)

    organization_pk: Mapped[int] = mapped_column(ForeignKey("organizations.pk"))
    name: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(20))
    models: Mapped[list[str]] = mapped_column(Json)
    disabled_at: Mapped[str | None] = mapped_column(String(40))


class Run(_Named, Base):
    """A model version of an organization; the names of its classes, which may be many, beside its `info`."""

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("organization_pk", "model_name", "version_name"),
        Index("runs_by_search", "organization_pk", "pk", "search"),
        Index("runs_by_time", "organization_pk", "created_at"),
    )

    organization_pk: Mapped[int] = mapped_column(ForeignKey("organizations.pk"))
    model_name: Mapped[str] = mapped_column(String(300))
    version_name: Mapped[str] = mapped_column(String(300))
    task: Mapped[str] = mapped_column(String(100), default="")
    info: Mapped[dict[str, Any]] = mapped_column(Json)
    class_names: Mapped[list[str] | None] = mapped_column(Json)
    updated_at: Mapped[str] = mapped_column(String(40))
    note: Mapped[str] = mapped_column(Text, default="")
    archived: Mapped[bool] = mapped_column(default=False)
    owner: Mapped[str] = mapped_column(String(200), default="")
    """Name of the person who made it, or of the key; empty for runs of before."""
    search: Mapped[str] = mapped_column(String(601), default="")
    """Its two names in small letters, a line each: what a search looks through."""

    @property
    def whole_info(self) -> dict[str, Any]:
        """Its run.json as clients know it."""
        return dict(self.info) if self.class_names is None else {**self.info, "class_names": self.class_names}


class RunTag(Base):
    """A word that was put on a run."""

    __tablename__ = "run_tags"
    __table_args__ = (UniqueConstraint("run_pk", "tag"), Index("tags_by_name", "tag", "run_pk"))

    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.pk"))
    tag: Mapped[str] = mapped_column(String(100))


class SaidVerdict(_Named, Base):
    """One person's word on a sample of a run; never changed, known by the id its author's machine gave it."""

    __tablename__ = "verdicts"
    __table_args__ = (UniqueConstraint("run_pk", "verdict_id"),)

    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.pk"))
    verdict_id: Mapped[str] = mapped_column(String(16))
    said: Mapped[dict[str, Any]] = mapped_column(Json)


class Blob(Base):
    """A complete blob of an organization. `state`: stored, checked, or refused (`facts` has the reason)."""

    __tablename__ = "blobs"
    __table_args__ = (UniqueConstraint("organization_pk", "sha256"),)

    organization_pk: Mapped[int] = mapped_column(ForeignKey("organizations.pk"))
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(_Big)
    state: Mapped[str] = mapped_column(String(10), index=True)
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[str] = mapped_column(String(40))


class Pass(_Named, Base):
    """One walk over one split. `epoch` is the number as text, or "none": a null would not be unique."""

    __tablename__ = "passes"
    __table_args__ = (UniqueConstraint("run_pk", "dataset_type", "epoch", "pass_no"),)

    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.pk"))
    dataset_type: Mapped[str] = mapped_column(String(300))
    epoch: Mapped[str] = mapped_column(String(24))
    pass_no: Mapped[int] = mapped_column(_Big)


class Seal(_Named, Base):
    """One rank of one attempt at a pass: there at once with all its files, or not at all.

    Where samples were removed from it, `first_digest` and `first_manifest` are those it was sealed with;
    `swept_at` is the newest removal it was looked through for.
    """

    __tablename__ = "seals"
    __table_args__ = (UniqueConstraint("pass_pk", "attempt", "rank_no"),)

    pass_pk: Mapped[int] = mapped_column(ForeignKey("passes.pk"))
    attempt: Mapped[str] = mapped_column(String(120))
    rank_no: Mapped[int] = mapped_column(_Big)
    world_size: Mapped[int] = mapped_column(_Big)
    manifest: Mapped[dict[str, Any]] = mapped_column(Json, deferred=True)
    manifest_blob_pk: Mapped[int | None] = mapped_column(ForeignKey("blobs.pk"), index=True)
    opening: Mapped[dict[str, Any]] = mapped_column(Json)
    rows: Mapped[dict[str, Any]] = mapped_column(Json)
    bytes: Mapped[int] = mapped_column(_Big)
    digest: Mapped[str] = mapped_column(String(64))
    first_digest: Mapped[str | None] = mapped_column(String(64))
    first_manifest: Mapped[str | None] = mapped_column(String(64), index=True)
    swept_at: Mapped[str | None] = mapped_column(String(40))


class SealFile(Base):
    """One file of a seal."""

    __tablename__ = "seal_files"

    seal_pk: Mapped[int] = mapped_column(ForeignKey("seals.pk"), index=True)
    blob_pk: Mapped[int] = mapped_column(ForeignKey("blobs.pk"), index=True)
    part: Mapped[str] = mapped_column(String(40))
    family: Mapped[str] = mapped_column(String(40))
    rows: Mapped[int] = mapped_column(_Big)


class Job(_Named, Base):
    """An evaluation that was asked for. `lease_until` is a Unix time: past it, the worker counts as dead."""

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_by_state", "state", "pk"), Index("jobs_by_run", "run_pk", "pk"))

    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.pk"))
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    state: Mapped[str] = mapped_column(String(10))
    progress: Mapped[float] = mapped_column(default=0.0)
    stage: Mapped[str] = mapped_column(String(200), default="")
    reason: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(String(100))
    result_pk: Mapped[int | None] = mapped_column(ForeignKey("results.pk"))
    attempts: Mapped[int] = mapped_column(default=0)
    cancel: Mapped[bool] = mapped_column(default=False)
    worker: Mapped[str | None] = mapped_column(String(120))
    lease_until: Mapped[float | None] = mapped_column()
    started_at: Mapped[str | None] = mapped_column(String(40))
    finished_at: Mapped[str | None] = mapped_column(String(40))
    rows: Mapped[int | None] = mapped_column(_Big)
    """Sample rows of the passes that it looks at, counted by its worker; None before it has begun."""


class Result(_Named, Base):
    """A stored result; `info` is its result.json."""

    __tablename__ = "results"
    __table_args__ = (UniqueConstraint("run_pk", "result_name"), Index("results_by_name", "result_name"))

    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.pk"))
    result_name: Mapped[str] = mapped_column(String(640))
    info: Mapped[dict[str, Any]] = mapped_column(Json)


class ResultFile(Base):
    """One file of a result's folder; `name` was given by the evaluation, never by a client."""

    __tablename__ = "result_files"

    result_pk: Mapped[int] = mapped_column(ForeignKey("results.pk"), index=True)
    blob_pk: Mapped[int] = mapped_column(ForeignKey("blobs.pk"), index=True)
    name: Mapped[str] = mapped_column(String(200))


class Removal(_Named, Base):
    """What was removed of a run: a sample (`input`), else passes or all. Null split, epoch: all of them.

    What was recorded earlier than `before` is not taken again.
    """

    __tablename__ = "removals"
    __table_args__ = (Index("removals_of_run", "organization_pk", "model_name", "version_name"),)

    organization_pk: Mapped[int] = mapped_column(ForeignKey("organizations.pk"))
    model_name: Mapped[str] = mapped_column(String(300))
    version_name: Mapped[str] = mapped_column(String(300))
    dataset_type: Mapped[str | None] = mapped_column(String(300))
    epoch: Mapped[str | None] = mapped_column(String(24))
    input: Mapped[str | None] = mapped_column(String(64))
    before: Mapped[str] = mapped_column(String(40))


class Garbage(Base):
    """A file that nobody names any more: it is to be deleted."""

    __tablename__ = "garbage"
    __table_args__ = (Index("garbage_by_name", "organization_pk", "sha256"),)

    organization_pk: Mapped[int] = mapped_column(ForeignKey("organizations.pk"))
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[str] = mapped_column(String(40))


class Audit(Base):
    """Who wrote what, when: one row for each request that changed something, or tried to."""

    __tablename__ = "audit"

    at: Mapped[str] = mapped_column(String(40), index=True)
    organization_id: Mapped[str | None] = mapped_column(String(40))
    key_id: Mapped[str | None] = mapped_column(String(40))
    request_id: Mapped[str] = mapped_column(String(40))
    remote: Mapped[str] = mapped_column(String(60))
    action: Mapped[str] = mapped_column(String(100))
    target: Mapped[str] = mapped_column(String(200))
    status: Mapped[int] = mapped_column()
