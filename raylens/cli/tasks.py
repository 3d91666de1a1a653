"""What the commands for many pictures ask about each of them, and the job that asks it."""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from preprocessing.header import upright_size
from raylens.core.errors import RaylensError

MAX_FILE_BYTES = 256 * 2**20
"""Larger files are not read. The server's own limit is lower."""


@dataclass(frozen=True)
class Task:
    """A request that is the same for every picture."""

    job_type: str
    """Type of the job, which is also the command's name."""
    answer_key: str
    """Key of the answer in the job's output and in a record."""
    fields: Mapping[str, Any]
    """Fields of the job's input, without the picture."""
    verb: str
    """Past participle that says of a picture that it has an answer."""
    redo_id: str = ""
    """A new one gives every picture a new job. Otherwise an equal request finds the old job."""

    @property
    def is_detection(self) -> bool:
        return self.job_type == "detect"

    def redone(self, redo_id: str) -> Task:
        return replace(self, redo_id=redo_id)


def caption_task(prompt: str | None, length: str | None, model: str | None) -> Task:
    fields = {"prompt": prompt, "length": length, "model": model}
    return Task("caption", "caption", _without_none(fields), "captioned")


def query_task(question: str, model: str | None) -> Task:
    return Task(
        "query", "answer", _without_none({"question": question, "model": model}), "answered"
    )


def detect_task(names: Sequence[str], max_objects: int | None, model: str | None) -> Task:
    fields = {"objects": list(names), "max_objects": max_objects, "model": model}
    return Task("detect", "objects", _without_none(fields), "searched")


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class PictureError(Exception):
    """An error that concerns one picture; ``code`` and the message become its result."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EncodedJob(NamedTuple):
    """A picture's job, as it is submitted."""

    body: bytes
    """JSON."""
    key: str
    """Idempotency key."""
    size: tuple[int, int] | None
    """(width, height) of the upright picture, if the task is about places in it and the size can
    be read here."""


def encode_job(path: Path, task: Task) -> EncodedJob:
    """Return a picture's job.

    The key depends on the file's bytes and on the task only, so every run uses the same one.
    Raises ``PictureError`` if the file cannot be read, or is empty.
    """
    data = _read(path)
    if not data:
        raise PictureError("invalid_request", "the picture is empty (0 bytes)")
    envelope = json.dumps({"job_type": task.job_type, "input": {**task.fields, "image": ""}})
    # The picture goes between the last two quotation marks: the envelope ends with `""}}`.
    body = b"".join((envelope[:-3].encode(), base64.b64encode(data), envelope[-3:].encode()))
    size = _size(data) if task.is_detection else None
    return EncodedJob(body, _idempotency_key(data, task), size)


def _idempotency_key(data: bytes, task: Task) -> str:
    digest = hashlib.sha256(data).hexdigest()
    identity = json.dumps([digest, task.fields, task.redo_id], sort_keys=True)
    return f"raylens-{task.job_type}-{hashlib.sha256(identity.encode()).hexdigest()}"


def _size(data: bytes) -> tuple[int, int] | None:
    """Return the upright size, if it can be read: the server may know more formats."""
    try:
        return upright_size(data)
    except RaylensError:
        return None


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
