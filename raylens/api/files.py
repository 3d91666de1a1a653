"""The part of OpenAI's API that stores files: the input and the output of batches.

Format: OpenAI's API reference, "Files".
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from raylens.api.answers import answers
from raylens.api.answers import openai as shapes
from raylens.core.config import JobsConfig
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.jobs.files import StoredFile, unknown_file
from raylens.jobs.job import new_id
from raylens.jobs.ports import JobService

PATH = "/v1/files"
PURPOSES = ("batch", "user_data", "vision")
"""Purposes of uploads. Only a file for ``batch`` is of use so far."""
MAX_FILENAME_CHARS = 255
MAX_PAGE = 10_000
MAX_IN_MEMORY = 4
"""Uploads whose contents are in memory at once, in one process. The others wait on the disk."""
_PREFIX = "file-"
_FILE_ID = re.compile(r"file-[0-9a-f]{32}(-output|-error)?")
_RESULT_PURPOSES = ("batch_output", "batch_error")
"""Purposes of the files that batches write."""


def router(jobs: JobService, config: JobsConfig) -> APIRouter:
    """Return the routes on files."""
    routes = APIRouter(prefix=PATH, tags=["OpenAI"])
    slots = asyncio.Semaphore(MAX_IN_MEMORY)

    @routes.post("", summary="Upload a file", openapi_extra=_UPLOAD, **answers(shapes.File))
    async def upload(http: Request) -> dict[str, Any]:
        async with _read_upload(http, config.max_file_bytes) as (file, contents), slots:
            return file_as_json(await jobs.add_file(file, await contents.read()))

    @routes.get("", summary="List files, newest first", **answers(shapes.FilePage))
    async def list_files(
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        if after is not None:
            check_file_id(after)
        if purpose not in (None, *PURPOSES, *_RESULT_PURPOSES):
            return page_as_json([], limit)
        # One file more than the limit tells whether a next page exists.
        files = await jobs.list_files(purpose, limit + 1, after, order == "desc")
        return page_as_json([file_as_json(file) for file in files], limit)

    @routes.get("/{file_id}", summary="Show a file", **answers(shapes.File))
    async def get(file_id: str) -> dict[str, Any]:
        return file_as_json(await jobs.get_file(check_file_id(file_id)))

    @routes.get(
        "/{file_id}/content",
        summary="Download a file",
        **answers(None, "application/octet-stream"),
    )
    async def content(file_id: str) -> StreamingResponse:
        file = await jobs.get_file(check_file_id(file_id))
        first = await jobs.read_file_part(file_id, 0)  # an error of it keeps its status
        return StreamingResponse(
            _read_parts(jobs, file, first or b""),
            media_type="application/octet-stream",
            headers={"Content-Length": str(file.size)},
        )

    @routes.delete("/{file_id}", summary="Delete a file", **answers(shapes.DeletedFile))
    async def delete(file_id: str) -> dict[str, Any]:
        await jobs.remove_file(check_file_id(file_id))
        return {"id": file_id, "object": "file", "deleted": True}

    return routes


def new_file_id() -> str:
    return _PREFIX + new_id().replace("-", "")


def check_file_id(file_id: str) -> str:
    """Return ``file_id`` if it has the form of this server's ids.

    No file has an id of another form: raises ``UnknownFile`` without a look-up.
    """
    if not _FILE_ID.fullmatch(file_id):
        raise unknown_file(file_id)
    return file_id


def file_as_json(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def page_as_json(items: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return a page of a list. ``items`` may hold one item more: the next page begins with it."""
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(items) > limit,
    }


@asynccontextmanager
async def _read_upload(
    http: Request, max_bytes: int
) -> AsyncGenerator[tuple[StoredFile, UploadFile], None]:
    """Yield an uploaded file, whose contents starlette has put on the disk if they are large.

    Raises ``InvalidRequest``, or ``PayloadTooLarge`` if the file is larger than ``max_bytes``.
    """
    if not http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("body: expected multipart/form-data with the field file", "body")
    async with AsyncExitStack() as stack:
        try:
            form = await stack.enter_async_context(http.form(max_files=1, max_fields=16))
        except HTTPException as error:
            if error.status_code != 400:
                raise
            raise InvalidRequest(f"body: {error.detail}", "body") from None
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise InvalidRequest("file: expected an uploaded file", "file")
        if purpose not in PURPOSES:
            known = ", ".join(PURPOSES)
            raise InvalidRequest(f"purpose: expected one of {known}", "purpose")
        size = upload.size or 0
        if size > max_bytes:
            message = f"file: {size} bytes; the limit is {max_bytes} bytes"
            raise PayloadTooLarge(message, "file", max_bytes, size)
        if not size:
            raise InvalidRequest("file: the file is empty (0 bytes)", "file")
        name = _clean_filename(upload.filename or "")
        # The queue fills in the times.
        yield StoredFile(new_file_id(), name, str(purpose), 0.0, 0.0, size), upload


def _clean_filename(name: str) -> str:
    """Return the last part of a path, without what can't be printed."""
    base = re.split(r"[/\\]", name)[-1]
    printable = "".join(character for character in base if character.isprintable())
    return printable[:MAX_FILENAME_CHARS] or "upload"


async def _read_parts(
    jobs: JobService, file: StoredFile, first: bytes
) -> AsyncGenerator[bytes, None]:
    """Yield the contents that the file had when its size was read; it may grow meanwhile."""
    part: bytes | None = first
    number, missing = 0, file.size
    while part and missing:
        yield part[:missing]
        missing -= len(part[:missing])
        number += 1
        part = await jobs.read_file_part(file.id, number) if missing else None


_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}
