"""Alembic's environment: runs the migrations on :mod:`raylens.jobs.sql.migrate`'s connection."""

from alembic import context

from raylens.jobs.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
