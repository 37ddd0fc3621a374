"""Evaluations go round the organizations: when one of an organization was last begun."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this schema."""
    op.add_column("organizations", sa.Column("last_job_at", sa.String(40), nullable=True))
    op.create_index("jobs_by_run", "jobs", ["run_pk", "pk"])


def downgrade() -> None:
    """Back."""
    op.drop_index("jobs_by_run", "jobs")
    op.drop_column("organizations", "last_job_at")
