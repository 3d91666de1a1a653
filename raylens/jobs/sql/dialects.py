"""What SQLAlchemy's dialects express differently."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert(db: sa.Connection, table: sa.Table) -> Any:
    """Return an INSERT statement that can have an ON CONFLICT clause."""
    dialect = postgresql if db.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
