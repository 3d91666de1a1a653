from __future__ import annotations

import base64
import json
from pathlib import Path

from raylens.cli.tasks import caption_task, encode_job
from tests.unit.cli.fake_server import write_pictures


def test_the_key_depends_on_the_bytes_and_the_request_only(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, "cat.jpg", "b/cat.jpg", "dog.jpg")
    task = caption_task("a", "short", "m")
    body, key, _ = encode_job(folder / "cat.jpg", task)
    assert encode_job(folder / "b/cat.jpg", task)[:2] == (body, key)
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
    others = [
        caption_task("b", "short", "m"),
        caption_task("a", "long", "m"),
        caption_task("a", "short", "n"),
        caption_task(None, None, "a"),
        caption_task("a", None, None),
    ]
    keys = {encode_job(folder / "cat.jpg", other).key for other in [*others, task.redone("1")]}
    keys |= {key, encode_job(folder / "dog.jpg", task).key}
    assert len(keys) == 8
