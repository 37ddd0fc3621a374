"""Manifests are blobs; a run's task stands in a column, and the names of its classes in another."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """To this schema; what stood in `info` moves."""
    op.add_column("runs", sa.Column("task", sa.String(100), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("class_names", sa.Text(), nullable=True))
    # In one statement: SQLite adds no constraint to a table that is there.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(f"ALTER TABLE seals ADD COLUMN manifest_blob_pk {kind} REFERENCES blobs (pk)")
    op.create_index("ix_seals_manifest_blob_pk", "seals", ["manifest_blob_pk"])
    runs = sa.table("runs", *(sa.column(name) for name in ("pk", "task", "info", "class_names")))
    last = 0
    while True:
        query = sa.select(runs.c.pk, runs.c.info).where(runs.c.pk > last).order_by(runs.c.pk).limit(100)
        rows = op.get_bind().execute(query).all()
        if not rows:
            return
        for pk, text in rows:
            info = json.loads(text)
            names = info.pop("class_names", None)
            task = str(info.get("task") or "")[:100]
            values = {"task": task, "info": json.dumps(info), "class_names": names and json.dumps(names)}
            op.execute(sa.update(runs).where(runs.c.pk == pk).values(**values))
        last = rows[-1][0]


def downgrade() -> None:
    """There is no way back but a backup of the schema before."""
    raise NotImplementedError
