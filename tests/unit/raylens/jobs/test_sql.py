from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from raylens.core.config import JobsConfig
from raylens.jobs.factory import make_blob_storage, make_store, read_webhook_secrets
from raylens.jobs.sql_engines import filesystem_type, postgres_store, sqlite_store
from raylens.jobs.store import QueueStartupError, StoreUnreachable

MOUNTS = r"""rootfs / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/me/local\040disk xfs rw 0 0
proc /proc proc rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "filesystem"),
    [
        ("/var", "ext4"),
        ("/home", "nfs4"),
        ("/home/me", "nfs4"),
        ("/home/me/local disk/x", "xfs"),
        ("/homes", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(
    tmp_path: Path, folder: str, filesystem: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert filesystem_type(Path(folder), mounts) == filesystem


def test_the_file_system_is_unknown_without_a_list_of_mounts(tmp_path: Path) -> None:
    assert filesystem_type(tmp_path, tmp_path / "nothing") == ""


@pytest.mark.parametrize("filesystem", ["nfs", "nfs4", "cifs", "fuse.sshfs"])
def test_sqlite_refuses_a_network_file_system_and_suggests_postgres(
    tmp_path: Path, filesystem: str
) -> None:
    message = rf"jobs.data_dir: .* is on {filesystem}.*postgresql://"
    with pytest.raises(QueueStartupError, match=message):
        sqlite_store(tmp_path / "jobs.sqlite", lambda folder: filesystem)


async def test_a_schema_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "jobs.sqlite")
    await store.open()
    await store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    reopened = sqlite_store(tmp_path / "jobs.sqlite")
    with pytest.raises(QueueStartupError, match=r"jobs\.store: unknown schema version"):
        await reopened.open()
    await reopened.close()


async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_text("no database " * 100)
    store = sqlite_store(tmp_path / "jobs.sqlite")
    with pytest.raises(QueueStartupError, match="not a database"):
        await store.open()
    await store.close()


async def test_a_server_that_does_not_answer_is_unreachable() -> None:
    store = postgres_store("postgresql://nobody@127.0.0.1:9/jobs?connect_timeout=2")
    with pytest.raises(StoreUnreachable, match=r"jobs\.store: "):
        await store.open()
    await store.close()


def test_invalid_settings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    with pytest.raises(QueueStartupError, match=r"jobs\.data_dir: "):
        make_store(JobsConfig(data_dir=file))
    with pytest.raises(QueueStartupError, match=r"jobs\.blobs: "):
        make_blob_storage(JobsConfig(blobs="no-such-protocol://x"))
    with pytest.raises(QueueStartupError, match=r"RAYLENS_WEBHOOK_SECRETS: expected whsec_"):
        read_webhook_secrets(JobsConfig(), {"RAYLENS_WEBHOOK_SECRETS": "secret"})


def test_files_tie_the_queue_to_a_node_and_services_do_not() -> None:
    postgres = "postgresql://db/jobs"
    assert JobsConfig().is_tied_to_a_node
    assert JobsConfig(store=postgres).is_tied_to_a_node
    assert JobsConfig(store=postgres, blobs="file:///data").is_tied_to_a_node
    assert not JobsConfig(store=postgres, blobs="s3://bucket/raylens").is_tied_to_a_node
    with pytest.raises(ValueError, match="memory://"):
        JobsConfig(blobs="memory://x")
