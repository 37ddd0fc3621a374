"""The first schema."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _table(name: str, *columns: Any) -> None:
    pk = sa.Column("pk", _BIG, autoincrement=True, nullable=False, primary_key=True)
    op.create_table(name, pk, *columns)


def _text(name: str, length: int | None = None, **more: Any) -> Any:
    kind = sa.Text() if length is None else sa.String(length)
    return sa.Column(name, kind, **{"nullable": False, **more})


def _number(name: str, kind: Any = _BIG, **more: Any) -> Any:
    return sa.Column(name, kind, **{"nullable": False, **more})


def _of(table: str, **more: Any) -> Any:
    """The column that names a row of another table."""
    name = f"{table.removesuffix('s') if table != 'passes' else 'pass'}_pk"
    return sa.Column(name, _BIG, sa.ForeignKey(f"{table}.pk"), **{"nullable": False, **more})


def _id() -> Any:
    return _text("id", 40, unique=True)


def upgrade() -> None:
    """To this schema."""
    _table(
        "audit",
        *(_text("at", 40), _text("organization_id", 40, nullable=True), _text("key_id", 40, nullable=True)),
        *(_text("request_id", 40), _text("remote", 60), _text("action", 100), _text("target", 200)),
        _number("status", sa.Integer()),
    )
    _table(
        "organizations",
        *(_id(), _text("name", 200, unique=True), _number("is_root", sa.Boolean()), _number("blob_bytes")),
        _text("created_at", 40),
    )
    _table(
        "api_keys",
        *(_id(), _of("organizations"), _text("name", 200), _text("secret_hash", 64), _text("scopes", 100)),
        _text("created_at", 40),
        *(_text(name, 40, nullable=True) for name in ("expires_at", "revoked_at", "last_used_at")),
    )
    _table(
        "blobs",
        *(_of("organizations"), _text("sha256", 64), _number("size"), _text("state", 10)),
        *(_text("facts", nullable=True), _text("created_at", 40)),
        sa.UniqueConstraint("organization_pk", "sha256"),
    )
    _table(
        "runs",
        *(_id(), _of("organizations"), _text("model_name", 300), _text("version_name", 300), _text("info")),
        *(_text("created_at", 40), _text("updated_at", 40)),
        sa.UniqueConstraint("organization_pk", "model_name", "version_name"),
    )
    _table(
        "passes",
        *(_id(), _of("runs"), _text("dataset_type", 300), _text("epoch", 24), _number("pass_no")),
        _text("created_at", 40),
        sa.UniqueConstraint("run_pk", "dataset_type", "epoch", "pass_no"),
    )
    _table(
        "results",
        *(_id(), _of("runs"), _text("result_name", 640), _text("info"), _text("created_at", 40)),
        sa.UniqueConstraint("run_pk", "result_name"),
    )
    _table(
        "jobs",
        *(_id(), _of("runs"), _text("request"), _text("state", 10), _number("progress", sa.Double())),
        *(_text("stage", 200), _text("reason", nullable=True), _text("error", 100, nullable=True)),
        *(_of("results", nullable=True), _number("attempts", sa.Integer()), _number("cancel", sa.Boolean())),
        *(_text("worker", 120, nullable=True), _number("lease_until", sa.Double(), nullable=True)),
        _text("created_at", 40),
        *(_text(name, 40, nullable=True) for name in ("started_at", "finished_at")),
    )
    _table("result_files", _of("results"), _of("blobs"), _text("name", 200))
    _table(
        "seals",
        *(_id(), _of("passes"), _text("attempt", 120), _number("rank_no"), _number("world_size")),
        *(_text("manifest"), _text("opening"), _text("rows"), _number("bytes"), _text("digest", 64)),
        _text("created_at", 40),
        sa.UniqueConstraint("pass_pk", "attempt", "rank_no"),
    )
    _table(
        "seal_files",
        *(_of("seals"), _of("blobs"), _text("part", 40), _text("family", 40), _number("rows")),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "pk"])
    for table, column in (
        *(("audit", "at"), ("blobs", "state"), ("result_files", "blob_pk"), ("result_files", "result_pk")),
        *(("seal_files", "blob_pk"), ("seal_files", "seal_pk")),
    ):
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column])


def downgrade() -> None:
    """To an empty database; indexes go with their tables."""
    for name in (
        *("seal_files", "seals", "result_files", "jobs", "results", "passes", "runs", "blobs", "api_keys"),
        *("organizations", "audit"),
    ):
        op.drop_table(name)
