"""Organizations take turns: when an evaluation was last begun. The files of results count in the quota."""

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
    op.execute(
        "UPDATE organizations SET blob_bytes = (SELECT COALESCE(SUM(size), 0) FROM blobs"
        " WHERE blobs.organization_pk = organizations.pk)"
    )


def downgrade() -> None:
    """Back."""
    op.drop_index("jobs_by_run", "jobs")
    op.drop_column("organizations", "last_job_at")
