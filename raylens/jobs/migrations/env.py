"""Alembic's environment: runs the migrations on the connection of :mod:`raylens.jobs.migrate`."""

from alembic import context

from raylens.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
