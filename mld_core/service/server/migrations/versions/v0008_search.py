"""What a search of runs looks through: their names in small letters, in an index of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_RUNS = sa.table(
    "runs", sa.column("pk"), sa.column("model_name"), sa.column("version_name"), sa.column("search")
)


def upgrade() -> None:
    """To this schema."""
    op.add_column("runs", sa.Column("search", sa.String(601), nullable=False, server_default=""))
    connection = op.get_bind()
    # Here and not in SQL: SQLite knows the small letters of English only.
    found = connection.execute(sa.select(_RUNS.c.pk, _RUNS.c.model_name, _RUNS.c.version_name)).all()
    rows = [{"run": pk, "text": f"{model}\n{version}".lower()[:601]} for pk, model, version in found]
    if rows:
        where = _RUNS.c.pk == sa.bindparam("run")
        connection.execute(sa.update(_RUNS).where(where).values(search=sa.bindparam("text")), rows)
    op.create_index("runs_by_search", "runs", ["organization_pk", "pk", "search"])
    op.drop_index("runs_in_order", "runs")


def downgrade() -> None:
    """Back."""
    op.create_index("runs_in_order", "runs", ["organization_pk", "pk", "model_name", "version_name"])
    op.drop_index("runs_by_search", "runs")
    op.drop_column("runs", "search")
