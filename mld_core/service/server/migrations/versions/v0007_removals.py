"""What was removed, and the files that are to go with it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """To this schema."""
    for name, size in (("first_digest", 64), ("first_manifest", 64), ("swept_at", 40)):
        op.add_column("seals", sa.Column(name, sa.String(size), nullable=True))
    op.create_index("ix_seals_first_manifest", "seals", ["first_manifest"])
    op.create_table(
        "removals",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False, primary_key=True),
        sa.Column("id", sa.String(40), nullable=False, unique=True),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("organization_pk", _BIG, sa.ForeignKey("organizations.pk"), nullable=False),
        sa.Column("model_name", sa.String(300), nullable=False),
        sa.Column("version_name", sa.String(300), nullable=False),
        sa.Column("dataset_type", sa.String(300), nullable=True),
        sa.Column("epoch", sa.String(24), nullable=True),
        sa.Column("input", sa.String(64), nullable=True),
        sa.Column("before", sa.String(40), nullable=False),
    )
    op.create_index("removals_of_run", "removals", ["organization_pk", "model_name", "version_name"])
    op.create_table(
        "garbage",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False, primary_key=True),
        sa.Column("organization_pk", _BIG, sa.ForeignKey("organizations.pk"), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_index("garbage_by_name", "garbage", ["organization_pk", "sha256"])


def downgrade() -> None:
    """Back."""
    op.drop_table("garbage")
    op.drop_table("removals")
    op.drop_index("ix_seals_first_manifest", "seals")
    for name in ("first_digest", "first_manifest", "swept_at"):
        op.drop_column("seals", name)
