"""Creates the durable stores: SQLite in a file, and PostgreSQL."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from raylens.jobs.clock import Clock
from raylens.jobs.sql.store import READERS, SqlStore
from raylens.jobs.store import QueueStartupError

BUSY_TIMEOUT_S = 5.0
"""Seconds that SQLite waits for another process's write."""
NETWORK_FILESYSTEMS = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "fuse.sshfs",
        "fuse.s3fs",
    }
)
STATEMENT_TIMEOUT_S = 20.0
"""PostgreSQL's ``statement_timeout`` and ``lock_timeout``, in seconds."""
_NOT_IN_HOSTS = frozenset("@#?/ \\")
"""Characters that a URL's host has only if the password before it was not percent-encoded."""
CONNECTION_DEFAULTS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "tcp_user_timeout": 20_000,
}
"""libpq parameters that detect a dead server. Parameters in the URL override them."""


def sqlite_store(
    path: Path,
    detect_filesystem: Callable[[Path], str] | None = None,
    clock: Clock | None = None,
) -> SqlStore:
    """Return a store in a file, in WAL mode, for the processes of one machine.

    Only this user may read the file: it holds webhook secrets.

    Raises ``QueueStartupError`` if the file is on a network file system: WAL mode is not safe there
    (https://www.sqlite.org/wal.html).
    """
    make_private_folder(path.parent, path.name)
    filesystem = (detect_filesystem or filesystem_type)(path.parent)
    if filesystem in NETWORK_FILESYSTEMS:
        raise QueueStartupError(
            f"jobs.data_dir: {path.parent} is on {filesystem}, and SQLite needs a local disk; "
            "for several machines, set jobs.store to a postgresql:// URL"
        )
    # SQLite gives its other files the permissions of this one.
    path.touch(mode=0o600)
    path.chmod(0o600)
    engine = sa.create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}
    )

    @sa.event.listens_for(engine, "connect")
    def connect(dbapi_connection: Any, record: Any) -> None:
        dbapi_connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            dbapi_connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(db: sa.Connection) -> None:
        reading = db.get_execution_options().get("reading", False)
        db.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return SqlStore(engine, clock)


def postgres_store(url: str) -> SqlStore:
    """Return a store at ``postgresql://user:password@host/database``, for any number of machines.

    Raises ``QueueStartupError`` if the URL is malformed or if the driver is not installed.
    """
    try:
        parsed = _parse_url(url)
        defaults = {
            name: value for name, value in CONNECTION_DEFAULTS.items() if name not in parsed.query
        }
        engine = sa.create_engine(
            parsed, pool_size=READERS + 1, pool_pre_ping=True, connect_args=defaults
        )
    except ImportError as error:
        raise QueueStartupError(
            "jobs.store: the PostgreSQL driver is not installed;"
            f" run pip install 'raylens[postgres]': {error}"
        ) from error

    @sa.event.listens_for(engine, "connect")
    def connect(dbapi_connection: Any, record: Any) -> None:
        for setting in ("statement_timeout", "lock_timeout"):
            dbapi_connection.execute(f"SET {setting} = '{STATEMENT_TIMEOUT_S:g}s'")
        dbapi_connection.commit()

    return SqlStore(engine)


def _parse_url(url: str) -> sa.URL:
    """Return the parsed URL.

    Raises ``QueueStartupError`` without any part of the URL: the password might be among them.
    """
    with suppress(SQLAlchemyError, ValueError):
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        if not set(parsed.host or "") & _NOT_IN_HOSTS:
            return parsed
    raise QueueStartupError(
        "jobs.store: not a valid URL; expected postgresql://user:password@host:port/database,"
        " with special characters of the password percent-encoded"
    )


def make_private_folder(folder: Path, own_file: str) -> None:
    """Create a folder that only this user may enter.

    An existing folder becomes private too if it is empty or holds ``own_file``; any other may be
    shared with somebody. Raises ``OSError``.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return
    mode = folder.stat().st_mode
    is_ours = (folder / own_file).exists() or not any(folder.iterdir())
    if is_ours and folder.stat().st_uid == os.getuid() and not mode & stat.S_ISVTX:
        folder.chmod(0o700)


def filesystem_type(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the file system type of a folder's innermost mount, such as ``ext4``.

    Return an empty string if the system has no ``/proc/self/mounts``, which only Linux has.
    """
    if not mounts.exists():
        return ""
    path = str(folder.resolve())
    innermost = ""
    filesystem = ""
    for line in mounts.read_text().splitlines():
        _, escaped_mount, mount_type, *_ = line.split(" ")
        mount = escaped_mount.replace("\\040", " ")
        is_below = path == mount or path.startswith(mount.rstrip("/") + "/")
        if is_below and len(mount) >= len(innermost):
            innermost = mount
            filesystem = mount_type
    return filesystem
