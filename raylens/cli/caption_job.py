"""The caption job of one picture: its request body and its idempotency key."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 256 * 2**20
"""Larger files are not read. The server's own limit is lower."""


@dataclass(frozen=True)
class CaptionOptions:
    """Options that apply to every picture. None means the server's default."""

    prompt: str | None = None
    length: str | None = None
    model: str | None = None


class PictureError(Exception):
    """An error that concerns one picture; ``code`` and the message become its result."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode_job(path: Path, options: CaptionOptions) -> tuple[bytes, str]:
    """Return the JSON body of a picture's job and its idempotency key.

    The key depends on the file's bytes and on the options only, so every run uses the same one.
    Raises ``PictureError`` if the file cannot be read.
    """
    data = _read(path)
    fields = {name: value for name, value in vars(options).items() if value is not None}
    envelope = json.dumps({"job_type": "caption", "input": {**fields, "image": ""}}).encode()
    # The picture goes between the last two quotation marks: the envelope ends with `""}}`.
    body = b"".join((envelope[:-3], base64.b64encode(data), envelope[-3:]))
    return body, _idempotency_key(data, options)


def _idempotency_key(data: bytes, options: CaptionOptions) -> str:
    digest = hashlib.sha256(data).hexdigest()
    identity = json.dumps([digest, options.prompt, options.length, options.model])
    return "raylens-caption-" + hashlib.sha256(identity.encode()).hexdigest()


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        # Opening a pipe would block. A folder is let through, since reading it raises the error
        # that explains it.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise PictureError("unreadable", "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            message = f"{status.st_size} bytes; the limit is {MAX_FILE_BYTES}"
            raise PictureError("payload_too_large", message)
        return path.read_bytes()
    except OSError as error:
        raise PictureError("unreadable", error.strerror or str(error)) from None
