"""What people said of the samples of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "verdicts",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False, primary_key=True),
        sa.Column("id", sa.String(40), nullable=False, unique=True),
        sa.Column("run_pk", _BIG, sa.ForeignKey("runs.pk"), nullable=False),
        sa.Column("verdict_id", sa.String(16), nullable=False),
        sa.Column("said", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.UniqueConstraint("run_pk", "verdict_id"),
    )


def downgrade() -> None:
    """Back."""
    op.drop_table("verdicts")
