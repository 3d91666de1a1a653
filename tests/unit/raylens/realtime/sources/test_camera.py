"""Only what can be tested without a camera: that its absence is clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylens.realtime.sources.address import parse_source
from raylens.realtime.sources.base import SourceAddress, SourceKind, SourceUnavailable
from raylens.realtime.sources.opening import open_source


def test_a_missing_camera_is_named() -> None:
    source = open_source(parse_source("camera:123"))
    assert source.is_live
    with pytest.raises(SourceUnavailable, match=r"^/dev/video123: no such camera$"):
        source.read()
    source.close()


def test_a_device_that_is_no_camera_is_named(tmp_path: Path) -> None:
    device = tmp_path / "video0"
    device.write_bytes(b"no camera")
    source = open_source(SourceAddress(SourceKind.CAMERA, str(device)))
    with pytest.raises(SourceUnavailable, match="video0: "):
        source.read()
    source.close()
