from __future__ import annotations

import base64
import json
from pathlib import Path

from raylens.cli.caption_job import CaptionOptions, encode_job
from tests.unit.cli.fake_server import write_pictures


def test_the_key_depends_on_the_bytes_and_the_options_only(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cat.jpg", "b/cat.jpg", "dog.jpg")
    options = CaptionOptions("a", "short", "m")
    body, key = encode_job(folder / "cat.jpg", options)
    assert encode_job(folder / "b/cat.jpg", options) == (body, key)
    assert json.loads(body) == {
        "job_type": "caption",
        "input": {
            "prompt": "a",
            "length": "short",
            "model": "m",
            "image": base64.b64encode(b"cat").decode(),
        },
    }
    assert key.isascii()
    assert len(key) <= 255
    other_options = [
        CaptionOptions("b", "short", "m"),
        CaptionOptions("a", "long", "m"),
        CaptionOptions("a", "short", "n"),
        CaptionOptions(model="a"),
        CaptionOptions("a"),
    ]
    keys = {encode_job(folder / "cat.jpg", options)[1] for options in other_options}
    keys |= {key, encode_job(folder / "dog.jpg", options)[1]}
    assert len(keys) == 7
