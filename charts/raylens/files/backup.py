"""Copy the job queue's database and pictures while it runs: backup.py DATA_DIR TARGET KEEP_DAYS.

Each copy of the database is consistent. Pictures are written once and never changed, so that each
is copied once; those that the queue has removed go after KEEP_DAYS, with the copies that name them.
"""

import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path


def main(data_dir: Path, target: Path, keep_days: float) -> None:
    os.umask(0o077)
    copy_database(data_dir / "jobs.sqlite", target)
    copy_pictures(data_dir / "blobs", target / "blobs")
    oldest = time.time() - keep_days * 86_400
    for path in target.glob("jobs-*"):
        if path.stat().st_mtime < oldest:
            path.unlink()
    for path in (target / "blobs").rglob("*"):
        if path.is_file() and path.stat().st_mtime < oldest and not in_use(path, data_dir, target):
            path.unlink()


def copy_database(source: Path, target: Path) -> None:
    name = f"jobs-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.sqlite"
    part = target / f"{name}.part"
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as live,
        closing(sqlite3.connect(part)) as copy,
    ):
        live.backup(copy)
    part.rename(target / name)


def copy_pictures(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if not path.is_file() or (copy.exists() and copy.stat().st_size == path.stat().st_size):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{copy.name}.part")
        try:
            shutil.copyfile(path, part)
        except FileNotFoundError:
            continue  # the queue has just removed it
        part.rename(copy)


def in_use(copy: Path, data_dir: Path, target: Path) -> bool:
    return (data_dir / "blobs" / copy.relative_to(target / "blobs")).exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
