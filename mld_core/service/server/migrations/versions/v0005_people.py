"""People: their role and the models they may see; whose a key and a run is."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "people",
        sa.Column("pk", _BIG, autoincrement=True, nullable=False, primary_key=True),
        sa.Column("id", sa.String(40), nullable=False, unique=True),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("organization_pk", _BIG, sa.ForeignKey("organizations.pk"), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("models", sa.Text(), nullable=False),
        sa.Column("disabled_at", sa.String(40), nullable=True),
        sa.UniqueConstraint("organization_pk", "name"),
    )
    # In one statement: SQLite adds no constraint to a table that is there.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(f"ALTER TABLE api_keys ADD COLUMN person_pk {kind} REFERENCES people (pk)")
    op.add_column("runs", sa.Column("owner", sa.String(200), nullable=False, server_default=""))


def downgrade() -> None:
    """There is no way back but a backup of the schema before."""
    raise NotImplementedError
