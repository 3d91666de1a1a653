from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from raylens.core.config import JobsConfig
from raylens.jobs.factory import make_blobs, make_store, webhook_secrets
from raylens.jobs.sql import filesystem, postgres_store, sqlite_store
from raylens.jobs.store import StoreUnreachable, StoreUnusable

MOUNTS = r"""rootfs / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /home/me/local\040disk xfs rw 0 0
proc /proc proc rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var", "ext4"),
        ("/home", "nfs4"),
        ("/home/me", "nfs4"),
        ("/home/me/local disk/x", "xfs"),
        ("/homes", "ext4"),
    ],
)
def test_the_innermost_mount_counts(tmp_path: Path, folder: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert filesystem(Path(folder), mounts) == kind


def test_a_system_that_does_not_tell_is_believed(tmp_path: Path) -> None:
    assert filesystem(tmp_path, tmp_path / "nothing") == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs"])
def test_sqlite_refuses_a_networks_file_system_and_says_what_does_it(
    tmp_path: Path, kind: str
) -> None:
    with pytest.raises(StoreUnusable, match=rf"jobs.data_dir: .* is on {kind}.*postgresql://"):
        sqlite_store(tmp_path / "jobs.sqlite", lambda folder: kind)


async def test_a_schema_that_a_newer_version_has_made_is_refused(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "jobs.sqlite")
    await store.open()
    await store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")
    file.close()
    again = sqlite_store(tmp_path / "jobs.sqlite")
    with pytest.raises(StoreUnusable, match=r"jobs\.store: its schema is not one"):
        await again.open()
    await again.close()


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_text("no database " * 100)
    store = sqlite_store(tmp_path / "jobs.sqlite")
    with pytest.raises(StoreUnusable, match="not a database"):
        await store.open()
    await store.close()


async def test_a_server_that_does_not_answer_may_yet() -> None:
    store = postgres_store("postgresql://nobody@127.0.0.1:9/jobs?connect_timeout=2")
    with pytest.raises(StoreUnreachable, match=r"jobs\.store: "):
        await store.open()
    await store.close()


def test_settings_that_cannot_work_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    with pytest.raises(StoreUnusable, match=r"jobs\.data_dir: "):
        make_store(JobsConfig(data_dir=file))
    with pytest.raises(StoreUnusable, match=r"jobs\.blobs: "):
        make_blobs(JobsConfig(blobs="no-such-protocol://x"))
    with pytest.raises(StoreUnusable, match=r"RAYLENS_WEBHOOK_SECRETS: a secret is whsec_"):
        webhook_secrets(JobsConfig(), {"RAYLENS_WEBHOOK_SECRETS": "secret"})


def test_files_tie_the_queue_to_a_node_and_services_do_not() -> None:
    assert JobsConfig().is_tied_to_a_node
    assert JobsConfig(store="postgresql://db/jobs").is_tied_to_a_node
    assert JobsConfig(store="postgresql://db/jobs", blobs="file:///data").is_tied_to_a_node
    assert not JobsConfig(
        store="postgresql://db/jobs", blobs="s3://bucket/raylens"
    ).is_tied_to_a_node
    with pytest.raises(ValueError, match="forgets pictures"):
        JobsConfig(blobs="memory://x")
