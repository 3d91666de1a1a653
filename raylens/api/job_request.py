"""Requests for jobs as they are sent, to jobs as the queue takes them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Request
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from raylens.api.context import Context
from raylens.api.errors import from_validation
from raylens.core.errors import InvalidRequest, RaylensError
from raylens.core.types import PictureFile
from raylens.core.wire import Body, Text
from raylens.jobs.blobs import digest_of, reference
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job, Webhook, new_id, rank_of
from raylens.jobs.registry import job_type
from raylens.jobs.webhooks import check_secret
from raylens.net.address import AllowList
from raylens.net.client import check_url

KEY_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
MAX_PRIORITY = 100
MAX_EXTRA = 16 * 2**10
"""Bytes of JSON that is only given back."""
MAX_DEPTH = 16
"""Of nested lists and objects in an input."""
_PICTURES = frozenset({"image", "images", "image_data", "image_url", "video"})
"""Under these keys of an input stand pictures, by themselves or in lists; an object among them
holds its own."""


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _plain(value: Any) -> Any:
    """What is given back as it came must be such that it can be: JSON of well-formed text and
    finite numbers."""
    try:
        _copied(value, "query", [], is_picture=False, depth=0)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (ValueError, RecursionError, InvalidRequest):
        needed = "JSON of well-formed text and finite numbers is needed"
        raise ValueError(f"{needed}, nested at most {MAX_DEPTH} deep") from None
    if size > MAX_EXTRA:
        raise ValueError(f"{size} bytes as JSON; the limit is {MAX_EXTRA}")
    return value


class JobRequest(Body):
    """The request of ``POST /api/v1/jobs``. ``query`` and ``domain_id`` come back as they are."""

    job_type: Annotated[Text, Field(max_length=64)]
    input: Annotated[dict[str, Any], Field(default_factory=dict)]
    query: Annotated[dict[str, Any] | None, AfterValidator(_plain)] = None
    domain_id: Annotated[Text | None, BeforeValidator(_none_if_empty)] = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY, strict=True)] = 0


class _Common(Body):
    """What the input of any type of job may hold, and its type doesn't see."""

    webhook_url: Text | None = None
    webhook_secret: Text | None = None
    timeout_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None


@dataclass(frozen=True)
class Submission:
    """A job, and its pictures by digest."""

    job: Job
    pictures: Mapping[str, bytes]


class JobReader:
    """Makes jobs of requests."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._config = context.config.jobs
        self._allowed = AllowList.parse(self._config.webhooks.allow)
        self._inference = InferenceClient(context.service, context.config)

    async def read(self, http: Request, body: JobRequest) -> Submission:
        """Raises ``InvalidRequest``, ``UnknownModel`` and ``PayloadTooLarge``, which name the
        field."""
        kind = job_type(body.job_type)
        if body.query and body.query.get("ids"):
            raise InvalidRequest(
                "query.ids: no source of pictures is configured; send them in input.images",
                "query.ids",
            )
        given = {
            name: value for name, value in body.input.items() if value != "" and value is not None
        }
        common = _validated(
            _Common, {name: given.pop(name) for name in _Common.model_fields if name in given}
        )
        webhook = self._webhook(common)
        without, pictures = await self._take_pictures(given)
        stored = _validated(kind.input_model, without)
        try:
            self._inference.resolve(stored)
        except RaylensError as error:
            raise error.about(f"input.{error.field}") from None
        extra = {"query": body.query, "domain_id": body.domain_id}
        whole = {
            "input": without,
            **extra,
            "type": kind.name,
            "priority": body.priority,
            **common.model_dump(),
        }
        now = time.time()
        job = Job(
            id=new_id(),
            type=kind.name,
            input=stored.model_dump(mode="json", exclude_unset=True),
            created_at=now,
            deadline=now + (common.timeout_s or self._config.timeout_s),
            max_attempts=self._config.max_attempts,
            rank=rank_of(body.priority, now),
            priority=body.priority,
            extra={name: value for name, value in extra.items() if value is not None},
            blobs=tuple(pictures),
            webhook=webhook,
            idempotency_key=_key(http),
            digest=hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest(),
            run_after=now,
        )
        return Submission(job, pictures)

    def _webhook(self, common: _Common) -> Webhook | None:
        if common.webhook_url is None:
            if common.webhook_secret is not None:
                raise InvalidRequest(
                    "input.webhook_secret: there is no webhook_url", "input.webhook_secret"
                )
            return None
        check_url(common.webhook_url, self._allowed, "input.webhook_url")
        if common.webhook_secret is not None:
            try:
                check_secret(common.webhook_secret)
            except ValueError as error:
                raise InvalidRequest(
                    f"input.webhook_secret: {error}", "input.webhook_secret"
                ) from None
        return Webhook(common.webhook_url, common.webhook_secret)

    async def _take_pictures(
        self, given: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The input with references where its pictures stood, and these by digest."""
        places: list[tuple[Any, Any, str]] = []
        copy = _copied(given, "input", places, is_picture=False, depth=0)
        limit = self._config.max_images
        if len(places) > limit:
            raise InvalidRequest(
                f"input: {len(places)} pictures; the limit is {limit}", "input", limit, len(places)
            )
        pictures: dict[str, bytes] = {}
        for holder, key, field in places:
            picture = await self._picture(holder[key], field)
            digest = await asyncio.to_thread(digest_of, picture.data)
            pictures[digest] = picture.data
            holder[key] = reference(digest)
        return copy, pictures

    async def _picture(self, text: str, field: str) -> PictureFile:
        """A data URL, or raw base64."""
        media = self._context.media
        if ":" in text[:16]:
            return await media.from_url(text, field)
        return await media.from_base64(text, field)


def _copied(
    value: Any, field: str, places: list[tuple[Any, Any, str]], *, is_picture: bool, depth: int
) -> Any:
    """A copy of an input. ``places`` are where in it pictures stand: a list or an object, index or
    key, and name."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(
            f"{field[:160]}: nested too deep; the limit is {MAX_DEPTH}", field[:160], MAX_DEPTH
        )
    items: list[tuple[Any, Any]]
    copy: Any
    if isinstance(value, list):
        copy, items = list(value), list(enumerate(value))
    elif isinstance(value, dict):
        copy, items = dict(value), list(value.items())
    else:
        return value
    for key, item in items:
        where = f"{field}.{key}"
        within = (
            is_picture
            if isinstance(value, list)
            else key in _PICTURES or (is_picture and key == "url")
        )
        copy[key] = _copied(item, where, places, is_picture=within, depth=depth + 1)
        if within and isinstance(item, str):
            places.append((copy, key, where[:160]))
    return copy


def _validated(shape: Any, given: dict[str, Any]) -> Any:
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        errors: list[Any] = [{**item, "loc": ("input", *item["loc"])} for item in error.errors()]
        raise from_validation(errors) from None


def _key(http: Request) -> str | None:
    key = http.headers.get(KEY_HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest(
            f"{KEY_HEADER}: 1 to 255 visible ASCII characters are needed", KEY_HEADER, 255
        )
    return key
