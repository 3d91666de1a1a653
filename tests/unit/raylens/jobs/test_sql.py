from __future__ import annotations

import sqlite3
import stat
import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from pydantic import ValidationError

from raylens.core.config import JobsConfig
from raylens.core.errors import InsufficientStorage
from raylens.jobs.factory import make_blob_storage, make_store, read_webhook_secrets
from raylens.jobs.job import Job, JobState
from raylens.jobs.sql.engines import (
    filesystem_type,
    make_private_folder,
    postgres_store,
    sqlite_store,
)
from raylens.jobs.store import QueueStartupError, StoreUnavailable
from raylens.jobs.transitions import JobUpdate, start_or_fail
from testing.virtual_time import EPOCH, VirtualClock

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
    with pytest.raises(StoreUnavailable) as caught:
        await store.open()
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.retry_after == 5
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush@4711@db/jobs",
        "postgresql://me:hush#4711@db:54x/jobs",
        "postgresql:/me:hush4711@db/jobs",
        "postgresql://me:hush4711@db:port/jobs",
        "postgresql+nothing://me:hush4711@db/jobs",
        "mysql://me:hush4711@db/jobs",
    ],
)
def test_no_part_of_a_mistyped_url_is_repeated(url: str) -> None:
    with pytest.raises((QueueStartupError, ValidationError)) as caught:
        make_store(JobsConfig(store=url))
    text = "".join(traceback.format_exception(caught.value))
    assert "jobs.store: not a valid URL" in text or "store: expected" in text
    assert not any(part in text for part in ("hush", "4711", "54x"))


async def test_only_this_user_may_read_the_data_folder(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "new" / "jobs.sqlite")
    await store.open()
    await store.add([], 1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    await store.close()
    assert modes.pop("new") == 0o700
    assert modes.keys() >= {"jobs.sqlite", "jobs.sqlite-wal"}
    assert set(modes.values()) == {0o600}


def test_a_folder_that_is_shared_with_others_stays_open(tmp_path: Path) -> None:
    def mode_after(folder: Path) -> int:
        make_private_folder(folder, "jobs.sqlite")
        return stat.S_IMODE(folder.stat().st_mode)

    empty, ours, shared, sticky = (tmp_path / name for name in ("empty", "ours", "shared", "tmp"))
    for folder in (empty, ours, shared, sticky):
        folder.mkdir()
        folder.chmod(0o755)
    (ours / "jobs.sqlite").touch()
    (shared / "other").touch()
    sticky.chmod(0o1777)
    assert [mode_after(folder) for folder in (empty, ours, shared)] == [0o700, 0o700, 0o755]
    assert mode_after(sticky) == 0o1777


async def test_a_store_of_the_release_before_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = sqlite_store(path)
    await store.open()
    job = Job("j", "caption", {}, created_at=1, deadline=2, max_attempts=3, rank=1)
    await store.add([job], 1)
    await store.close()
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as db:
        config = Config(attributes={"connection": db})
        config.set_main_option("script_location", "raylens.jobs.sql:migrations")
        command.downgrade(config, "0001")
    engine.dispose()
    migrated = sqlite_store(path)
    await migrated.open()
    assert await migrated.get(["j"]) == {"j": job}
    assert (await migrated.count_by_state())[JobState.QUEUED] == 1
    await migrated.close()


async def test_a_blob_of_the_release_before_counts_once_it_is_sent_again(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "jobs.sqlite")
    await store.open()
    await store.touch_blobs({"a" * 64: 0}, 1, 100)  # its size is unknown
    for _ in range(2):
        await store.touch_blobs({"a" * 64: 60}, 2, 100)
    with pytest.raises(InsufficientStorage):
        await store.touch_blobs({"b" * 64: 41}, 2, 100)
    await store.touch_blobs({"b" * 64: 40}, 2, 100)
    await store.close()


async def test_counts_that_an_older_release_left_behind_are_corrected(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "jobs.sqlite")
    await store.open()
    jobs = [Job(f"j{n}", "x", {}, created_at=1, deadline=2, max_attempts=3, rank=1) for n in (1, 2)]
    await store.add(jobs, 2)
    await store.touch_blobs({"a" * 64: 10}, 1, 100)
    await store.check_counts()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    with engine.begin() as db:  # as an older release does it, without counters
        db.exec_driver_sql("UPDATE jobs SET state = 'succeeded' WHERE id = 'j1'")
        db.exec_driver_sql("DELETE FROM blobs")
    engine.dispose()
    assert (await store.count_by_state())[JobState.QUEUED] == 2
    await store.check_counts()
    counts = await store.count_by_state()
    assert (counts[JobState.QUEUED], counts[JobState.SUCCEEDED]) == (1, 1)
    assert await store.touch_blobs({"b" * 64: 100}, 1, 100) == set()
    await store.close()


async def test_the_time_of_a_new_boot_is_not_before_that_of_the_jobs(tmp_path: Path) -> None:
    store = sqlite_store(tmp_path / "jobs.sqlite", clock=VirtualClock())
    await store.open()
    job = Job("j", "x", {}, created_at=EPOCH, deadline=EPOCH + 60, max_attempts=3, rank=EPOCH)
    await store.add([job], 9)
    await store.claim(1, EPOCH, lambda job: JobUpdate(start_or_fail(job, EPOCH, "a", EPOCH + 15)))
    await store.close()
    without_battery = VirtualClock("boot-2")
    without_battery.step = -86_400.0
    store = sqlite_store(tmp_path / "jobs.sqlite", clock=without_battery)
    await store.open()
    now = await store.read_clock()
    assert now == pytest.approx(EPOCH + 15, abs=1)
    (job,) = await store.claim(
        1, now, lambda job: JobUpdate(start_or_fail(job, now, "b", now + 15))
    )
    assert job.fence == 2
    await store.close()


@pytest.mark.parametrize("step", [15.0, -15.0])
async def test_the_time_of_sqlite_is_that_of_the_first_process_of_a_boot(
    tmp_path: Path, step: float
) -> None:
    async def read_clock(clock: VirtualClock) -> float:
        store = sqlite_store(tmp_path / "jobs.sqlite", clock=clock)
        await store.open()
        time = await store.read_clock()
        await store.close()
        return time

    first = await read_clock(VirtualClock())
    assert first == pytest.approx(EPOCH, abs=1)
    stepped = VirtualClock()
    stepped.step = step
    assert await read_clock(stepped) == pytest.approx(first, abs=1)
    after_boot = VirtualClock("boot-2")
    after_boot.step = step
    assert await read_clock(after_boot) == pytest.approx(first + step, abs=1)


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
