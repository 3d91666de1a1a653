"""Alembic's entry: runs the steps on the connection that :mod:`raylens.jobs.migrate` gives."""

from alembic import context

from raylens.jobs.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
