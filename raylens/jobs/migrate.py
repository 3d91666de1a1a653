"""Brings a store's schema up to date, by the versioned steps in :mod:`raylens.jobs.migrations`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from raylens.jobs.store import StoreUnusable

_LOCK = 0x7261796C656E73
"""Any number that nobody else uses."""


def upgrade(connection: sa.Connection) -> None:
    """In the connection's transaction. Others who do so wait: SQLite's write lock, or an advisory
    one, sees to it.

    Raises ``StoreUnusable`` for a schema that a newer version has made.
    """
    if connection.dialect.name == "postgresql":
        for limit in ("statement_timeout", "lock_timeout"):  # a step may take its time
            connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "raylens.jobs:migrations")
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreUnusable(
            f"jobs.store: its schema is not one that this version knows: {error}"
        ) from error
