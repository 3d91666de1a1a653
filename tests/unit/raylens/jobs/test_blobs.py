from __future__ import annotations

import errno
import math
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest

from raylens.core.errors import InsufficientStorage
from raylens.jobs.blobs import (
    BlobMissing,
    BlobStorage,
    compute_digest,
    is_reference,
    make_reference,
)
from raylens.jobs.store import StoreUnavailable


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStorage:
    if request.param == "folder":
        return BlobStorage(str(tmp_path / "blobs"))
    return BlobStorage(f"memory://{tmp_path.name}")


def test_a_blob_can_be_read_until_it_is_removed(blobs: BlobStorage) -> None:
    data = b"a picture"
    digest = compute_digest(data)
    blobs.put(digest, data)
    blobs.put(digest, data)
    assert blobs.get(digest) == data
    blobs.remove(digest)
    blobs.remove(digest)
    with pytest.raises(BlobMissing):
        blobs.get(digest)


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    blobs = BlobStorage(str(tmp_path))
    digest = compute_digest(b"x")
    with pytest.raises(StoreUnavailable, match="storing a picture failed; see the server's log"):
        blobs.put(digest, "not bytes")  # type: ignore[arg-type]
    with pytest.raises(BlobMissing):
        blobs.get(digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_this_user_may_read_a_local_blob(tmp_path: Path) -> None:
    blobs = BlobStorage(str(tmp_path / "data" / "blobs"))
    digest = compute_digest(b"x")
    blobs.put(digest, b"x")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def fail(code: int, *arguments: object) -> None:
    raise OSError(code, "it failed", "/secret")


def test_errors_name_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobStorage(str(tmp_path / "blobs"))

    for code, expected in (
        (errno.ENOSPC, InsufficientStorage),
        (errno.EDQUOT, InsufficientStorage),
        (errno.EIO, StoreUnavailable),
    ):
        monkeypatch.setattr("os.fsync", partial(fail, code))
        with pytest.raises(expected) as caught:
            blobs.put(compute_digest(b"x"), b"x")
        assert "/" not in caught.value.message
        assert caught.value.retry_after
    with pytest.raises(BlobMissing):
        blobs.get(compute_digest(b"x"))


def test_the_free_bytes_are_those_of_the_disk_if_there_is_one(tmp_path: Path) -> None:
    free = BlobStorage(str(tmp_path / "not" / "there")).free_bytes()
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert BlobStorage("memory://x").free_bytes() == math.inf


def test_only_a_complete_digest_is_a_reference() -> None:
    digest = compute_digest(b"x")
    assert is_reference(make_reference(digest))
    others = (digest, "blob:", f"blob:{digest}0", f"blob:../{digest[3:]}", 5)
    assert not any(is_reference(value) for value in others)
