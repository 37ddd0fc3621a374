"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "audit",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("at", sa.String(length=40), nullable=False),
        sa.Column("organization_id", sa.String(length=40), nullable=True),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("request_id", sa.String(length=40), nullable=False),
        sa.Column("remote", sa.String(length=60), nullable=False),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)
    op.create_table(
        "organizations",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("is_root", sa.Boolean(), nullable=False),
        sa.Column("blob_bytes", _BIG, nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "api_keys",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("organization_pk", _BIG, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.Column("expires_at", sa.String(length=40), nullable=True),
        sa.Column("revoked_at", sa.String(length=40), nullable=True),
        sa.Column("last_used_at", sa.String(length=40), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_pk"],
            ["organizations.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
    )
    op.create_table(
        "blobs",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("organization_pk", _BIG, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("facts", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_pk"],
            ["organizations.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("organization_pk", "sha256"),
    )
    op.create_index(op.f("ix_blobs_state"), "blobs", ["state"], unique=False)
    op.create_table(
        "runs",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("organization_pk", _BIG, nullable=False),
        sa.Column("model_name", sa.String(length=300), nullable=False),
        sa.Column("version_name", sa.String(length=300), nullable=False),
        sa.Column("info", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.Column("updated_at", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_pk"],
            ["organizations.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("organization_pk", "model_name", "version_name"),
    )
    op.create_table(
        "passes",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("run_pk", _BIG, nullable=False),
        sa.Column("dataset_type", sa.String(length=300), nullable=False),
        sa.Column("epoch", sa.String(length=24), nullable=False),
        sa.Column("pass_no", _BIG, nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_pk"],
            ["runs.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("run_pk", "dataset_type", "epoch", "pass_no"),
    )
    op.create_table(
        "results",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("run_pk", _BIG, nullable=False),
        sa.Column("result_name", sa.String(length=640), nullable=False),
        sa.Column("info", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_pk"],
            ["runs.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("run_pk", "result_name"),
    )
    op.create_table(
        "jobs",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("run_pk", _BIG, nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error", sa.String(length=100), nullable=True),
        sa.Column("result_pk", _BIG, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel", sa.Boolean(), nullable=False),
        sa.Column("worker", sa.String(length=120), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.Column("started_at", sa.String(length=40), nullable=True),
        sa.Column("finished_at", sa.String(length=40), nullable=True),
        sa.ForeignKeyConstraint(
            ["result_pk"],
            ["results.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["run_pk"],
            ["runs.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "pk"], unique=False)
    op.create_table(
        "result_files",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("result_pk", _BIG, nullable=False),
        sa.Column("blob_pk", _BIG, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_pk"],
            ["blobs.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["result_pk"],
            ["results.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    op.create_index(op.f("ix_result_files_blob_pk"), "result_files", ["blob_pk"], unique=False)
    op.create_index(op.f("ix_result_files_result_pk"), "result_files", ["result_pk"], unique=False)
    op.create_table(
        "seals",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("pass_pk", _BIG, nullable=False),
        sa.Column("attempt", sa.String(length=120), nullable=False),
        sa.Column("rank_no", _BIG, nullable=False),
        sa.Column("world_size", _BIG, nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("opening", sa.Text(), nullable=False),
        sa.Column("rows", sa.Text(), nullable=False),
        sa.Column("bytes", _BIG, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["pass_pk"],
            ["passes.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("id"),
        sa.UniqueConstraint("pass_pk", "attempt", "rank_no"),
    )
    op.create_table(
        "seal_files",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False),
        sa.Column("seal_pk", _BIG, nullable=False),
        sa.Column("blob_pk", _BIG, nullable=False),
        sa.Column("part", sa.String(length=40), nullable=False),
        sa.Column("family", sa.String(length=40), nullable=False),
        sa.Column("rows", _BIG, nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_pk"],
            ["blobs.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["seal_pk"],
            ["seals.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    op.create_index(op.f("ix_seal_files_blob_pk"), "seal_files", ["blob_pk"], unique=False)
    op.create_index(op.f("ix_seal_files_seal_pk"), "seal_files", ["seal_pk"], unique=False)


def downgrade() -> None:
    """To an empty database."""
    op.drop_index(op.f("ix_seal_files_seal_pk"), table_name="seal_files")
    op.drop_index(op.f("ix_seal_files_blob_pk"), table_name="seal_files")
    op.drop_table("seal_files")
    op.drop_table("seals")
    op.drop_index(op.f("ix_result_files_result_pk"), table_name="result_files")
    op.drop_index(op.f("ix_result_files_blob_pk"), table_name="result_files")
    op.drop_table("result_files")
    op.drop_index("jobs_by_state", table_name="jobs")
    op.drop_table("jobs")
    op.drop_table("results")
    op.drop_table("passes")
    op.drop_table("runs")
    op.drop_index(op.f("ix_blobs_state"), table_name="blobs")
    op.drop_table("blobs")
    op.drop_table("api_keys")
    op.drop_table("organizations")
    op.drop_index(op.f("ix_audit_at"), table_name="audit")
    op.drop_table("audit")
