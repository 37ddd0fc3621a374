"""Lists of many runs: their order, their search; tags, a note and an archived flag on a run."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_INDEXES = {
    "runs_in_order": ("runs", ["organization_pk", "pk", "model_name", "version_name"]),
    "runs_by_time": ("runs", ["organization_pk", "created_at"]),
    "results_by_name": ("results", ["result_name"]),
    "tags_by_name": ("run_tags", ["tag", "run_pk"]),
}


def upgrade() -> None:
    """To this schema."""
    op.add_column("runs", sa.Column("note", sa.Text(), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("archived", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "run_tags",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False, primary_key=True),
        sa.Column("run_pk", _BIG, sa.ForeignKey("runs.pk"), nullable=False),
        sa.Column("tag", sa.String(100), nullable=False),
        sa.UniqueConstraint("run_pk", "tag"),
    )
    for name, (table, columns) in _INDEXES.items():
        op.create_index(name, table, columns)


def downgrade() -> None:
    """Back."""
    for name, (table, _) in _INDEXES.items():
        op.drop_index(name, table)
    op.drop_table("run_tags")
    op.drop_column("runs", "archived")
    op.drop_column("runs", "note")
