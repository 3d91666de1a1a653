from __future__ import annotations

from pathlib import Path

import pytest

from raylens.jobs.blobs import BlobMissing, Blobs, digest_of, is_reference, reference


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return (
        Blobs(str(tmp_path / "blobs"))
        if request.param == "folder"
        else Blobs(f"memory://{tmp_path.name}")
    )


def test_what_is_put_comes_back_until_it_is_removed(blobs: Blobs) -> None:
    data = b"a picture"
    digest = digest_of(data)
    blobs.put(digest, data)
    blobs.put(digest, data)
    assert blobs.get(digest) == data
    blobs.remove(digest)
    blobs.remove(digest)
    with pytest.raises(BlobMissing):
        blobs.get(digest)


def test_a_write_that_is_cut_off_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path))
    digest = digest_of(b"x")
    with pytest.raises(TypeError):
        blobs.put(digest, "not bytes")  # type: ignore[arg-type]
    with pytest.raises(BlobMissing):
        blobs.get(digest)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_a_whole_digest_is_a_reference() -> None:
    digest = digest_of(b"x")
    assert is_reference(reference(digest))
    assert not any(
        is_reference(value)
        for value in (digest, "blob:", f"blob:{digest}0", f"blob:../{digest[3:]}", 5)
    )
