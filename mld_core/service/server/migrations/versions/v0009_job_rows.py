"""How many sample rows an evaluation looks at; of those that ended before, nobody knows it any more."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """To this schema."""
    op.add_column("jobs", sa.Column("rows", _BIG, nullable=True))


def downgrade() -> None:
    """Back."""
    op.drop_column("jobs", "rows")
