"""Migrates a store's schema with the migration scripts in :mod:`raylens.jobs.sql.migrations`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from raylens.jobs.store import QueueStartupError

_LOCK = 0x7261796C656E73
"""Key of the PostgreSQL advisory lock: "raylens" in ASCII."""


def upgrade(db: sa.Connection) -> None:
    """Migrate the schema to the latest version, in the connection's transaction.

    Concurrent upgrades wait for each other: on SQLite's write lock, or on an advisory lock of
    PostgreSQL. Raises ``QueueStartupError`` if a newer release of raylens created the schema.
    """
    if db.dialect.name == "postgresql":
        for setting in ("statement_timeout", "lock_timeout"):  # a migration may take a long time
            db.exec_driver_sql(f"SET LOCAL {setting} = 0")
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = Config(attributes={"connection": db})
    config.set_main_option("script_location", "raylens.jobs.sql:migrations")
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise QueueStartupError(f"jobs.store: unknown schema version: {error}") from error
