"""Alembic's entry: runs the migrations on the connection that `Database.migrate` hands over."""

from alembic import context

from mld_core.service.server.storage.models import Base


def run() -> None:
    """Bring the schema to where Alembic was told."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


if __name__ == "env_py":  # the name Alembic loads it by; elsewhere it is only looked at
    run()
