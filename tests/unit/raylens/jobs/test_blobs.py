from __future__ import annotations

from pathlib import Path

import pytest

from raylens.jobs.blobs import (
    BlobMissing,
    BlobStorage,
    compute_digest,
    is_reference,
    make_reference,
)


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
    with pytest.raises(TypeError):
        blobs.put(digest, "not bytes")  # type: ignore[arg-type]
    with pytest.raises(BlobMissing):
        blobs.get(digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_a_complete_digest_is_a_reference() -> None:
    digest = compute_digest(b"x")
    assert is_reference(make_reference(digest))
    others = (digest, "blob:", f"blob:{digest}0", f"blob:../{digest[3:]}", 5)
    assert not any(is_reference(value) for value in others)
