"""Request bodies to jobs: validation, pictures, webhook and idempotency key."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from fastapi import Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from raylens.api.context import Context, gather
from raylens.api.errors import MAX_FIELD_CHARS, from_validation
from raylens.api.model_selection import refuse_incapable
from raylens.api.sourced_pictures import SourcedPictures
from raylens.core.errors import InvalidRequest, RaylensError
from raylens.core.types import PictureFile
from raylens.core.wire import Body, FrameRate, MediaUrl, Text, split_frames, well_formed
from raylens.jobs.blobs import compute_digest, is_reference, make_reference
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job, Webhook, compute_rank, new_id
from raylens.jobs.ports import JobService
from raylens.jobs.registry import get_job_type
from raylens.jobs.types.base import JobType
from raylens.jobs.webhooks import check_secret
from raylens.net.address import AllowList
from raylens.net.client import check_destination
from raylens.net.lookup import LookUp

IDEMPOTENCY_HEADER = "Idempotency-Key"
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
MAX_PRIORITY = 100
MAX_QUERY_BYTES = 16 * 2**10
"""Bytes of ``query`` as JSON."""
MAX_DOMAIN_ID_CHARS = 256
MAX_DEPTH = 16
"""Levels of nested lists and objects in an input or a ``query``."""
_MEDIA_KEYS = {
    **dict.fromkeys(("image", "images", "image_data", "image_url"), "picture"),
    **dict.fromkeys(("video", "video_url"), "video"),
}
"""Keys of an input that hold a picture or a video, a list of pictures, or objects with pictures or
videos of their own, and what they hold. A list under a video's key is its frames."""


def _empty_to_none(value: Any) -> Any:
    return None if value == "" else value


def _none_to_empty(value: Any) -> Any:
    return {} if value is None else value


def _none_to_zero(value: Any) -> Any:
    return 0 if value is None else value


def _check_query(value: Any) -> Any:
    """Return ``value`` if it is JSON that can be stored and sent back unchanged.

    Raises ``ValueError`` for ill-formed text, NaN and infinity, deep nesting, and too many bytes.
    """
    try:
        _copy(value, "query", [], kind=None, depth=0)
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
    except (ValueError, RecursionError, InvalidRequest):
        raise ValueError(
            "expected JSON of well-formed text and finite numbers;"
            f" the limit is {MAX_DEPTH} levels of nesting"
        ) from None
    if size > MAX_QUERY_BYTES:
        raise ValueError(f"{size} bytes as JSON; the limit is {MAX_QUERY_BYTES}")
    return value


# The length is checked before ``Text`` hides from Pydantic that this is text.
DomainId = Annotated[str, Field(max_length=MAX_DOMAIN_ID_CHARS), AfterValidator(well_formed)]


class JobRequest(Body):
    """Body of ``POST /api/v1/jobs``. ``query`` and ``domain_id`` are sent back unchanged."""

    job_type: Annotated[str, Field(max_length=64), AfterValidator(well_formed)]
    input: Annotated[dict[str, Any], Field(default_factory=dict), BeforeValidator(_none_to_empty)]
    query: Annotated[dict[str, Any] | None, AfterValidator(_check_query)] = None
    domain_id: Annotated[DomainId | None, BeforeValidator(_empty_to_none)] = None
    priority: Annotated[
        Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY, strict=True)],
        BeforeValidator(_none_to_zero),
    ] = 0


class _CommonInput(Body):
    """Input fields that every job type accepts and no job type reads."""

    webhook_url: Text | None = None
    webhook_secret: Text | None = None
    timeout_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None


@dataclass(frozen=True)
class Submission:
    """A job, and its pictures and videos by digest."""

    job: Job
    files: Mapping[str, bytes]


class _Slot(NamedTuple):
    """Position of a picture or video in an input: ``container[key]``."""

    container: Any
    key: Any
    media: MediaUrl


class JobReader:
    """Turns request bodies into jobs. ``look_up`` finds the addresses of webhooks' hosts."""

    def __init__(self, context: Context, look_up: LookUp) -> None:
        self._context = context
        self._look_up = look_up
        self._config = context.config.jobs
        self._allowed = AllowList.parse(self._config.webhooks.allow)
        self._inference = InferenceClient(context.service, context.config)
        self._sourced = SourcedPictures(context.config)

    async def submit(self, http: Request, body: JobRequest, jobs: JobService) -> Job:
        """Submit the job of a request, and return it.

        A request with the idempotency key of an earlier one returns that one's job, without a look
        at its pictures: what was at a web address or in a source may have changed meanwhile.

        Raises what :meth:`read` and :meth:`raylens.jobs.ports.JobService.submit` raise.
        """
        key = read_idempotency_key(http)
        digest = ""
        if key is not None:
            digest = await asyncio.to_thread(_compute_digest, body)
            earlier = await jobs.find_submitted(key, digest)
            if earlier is not None:
                return earlier
        submission = await self.read(http, body)
        job = replace(submission.job, idempotency_key=key, digest=digest)
        return await jobs.submit(job, submission.files)

    async def read(self, http: Request, body: JobRequest) -> Submission:
        """Return the job and its pictures and videos.

        Raises ``InvalidRequest``, ``UnknownModel`` or ``PayloadTooLarge`` with the field's name.
        """
        requested_type = get_job_type(body.job_type)
        fields = {
            name: value for name, value in body.input.items() if value != "" and value is not None
        }
        common_fields = {
            name: fields.pop(name) for name in _CommonInput.model_fields if name in fields
        }
        common = _validate(_CommonInput, common_fields)
        webhook = await self._webhook(common)
        job_input, files = await self._extract_files(http, fields, requested_type)
        sourced = await self._sourced.read(
            body.query,
            body.domain_id,
            has_pictures=bool(files),
            takes_many="images" in requested_type.input_model.model_fields,
        )
        if sourced:
            job_input |= requested_type.input_model.with_pictures(
                [make_reference(picture.digest) for picture in sourced],
                [picture.taken_at for picture in sourced],
            )
            files |= {picture.digest: picture.data for picture in sourced}
            if not requested_type.retries_units:
                for picture in sourced:
                    file = PictureFile(picture.data, picture.field)
                    await asyncio.to_thread(self._context.check_media, file)
        validated_input = _validate(requested_type.input_model, job_input)
        stored_input = validated_input.model_dump(mode="json", exclude_unset=True)
        _check_references(stored_input, "input", files)
        for name, length in validated_input.text_lengths().items():
            self._context.check_text_length(length, f"input.{name}")
        try:
            model = self._inference.resolve(validated_input).model
        except RaylensError as error:
            raise error.about(f"input.{error.field}") from None
        if requested_type.capability is not None:
            await refuse_incapable(self._context, model, requested_type.capability, "input.model")
        extra = {"query": body.query, "domain_id": body.domain_id}
        now = time.time()
        job = Job(
            id=new_id(),
            type=requested_type.name,
            input=stored_input,
            created_at=now,
            deadline=now + (common.timeout_s or self._config.timeout_s),
            max_attempts=self._config.max_attempts,
            rank=compute_rank(body.priority, now),
            model=model,
            priority=body.priority,
            extra={name: value for name, value in extra.items() if value is not None},
            blobs=tuple(files),
            webhook=webhook,
            run_after=now,
        )
        return Submission(job, files)

    async def _webhook(self, common: _CommonInput) -> Webhook | None:
        if common.webhook_url is None:
            if common.webhook_secret is not None:
                raise InvalidRequest(
                    "input.webhook_secret: input.webhook_url is missing", "input.webhook_secret"
                )
            return None
        return await self.check_webhook(
            Webhook(common.webhook_url, common.webhook_secret),
            "input.webhook_url",
            "input.webhook_secret",
        )

    async def check_webhook(self, webhook: Webhook, url_field: str, secret_field: str) -> Webhook:
        """Return a webhook if it may be called. Raises ``InvalidRequest``."""
        await check_destination(webhook.url, self._allowed, url_field, look_up=self._look_up)
        if webhook.secret is not None:
            try:
                check_secret(webhook.secret)
            except ValueError as error:
                raise InvalidRequest(f"{secret_field}: {error}", secret_field) from None
        return webhook

    async def _extract_files(
        self, http: Request, fields: dict[str, Any], job_type: JobType
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return a copy of the input with references for its pictures and videos, and these by
        digest."""
        slots: list[_Slot] = []
        copy = _copy(fields, "input", slots, kind=None, depth=0)
        urls = [slot.media for slot in slots]
        limit = self._config.max_images
        if job_type.asks_once:
            self._context.media.check_count(urls, "input")
        elif len(urls) > limit:
            raise InvalidRequest(
                f"input: {len(urls)} pictures; the limit is {limit}", "input", limit, len(urls)
            )
        deadline = self._context.fetch_deadline(http)
        read = self._context.media.read
        contents = await gather(read(url, deadline, accept_base64=True) for url in urls)
        files: dict[str, bytes] = {}
        for slot, file in zip(slots, contents, strict=True):
            if not job_type.retries_units:
                await asyncio.to_thread(self._context.check_media, file)
            digest = await asyncio.to_thread(compute_digest, file.data)
            files[digest] = file.data
            slot.container[slot.key] = make_reference(digest)
        return copy, files


def _copy(value: Any, field: str, slots: list[_Slot], *, kind: str | None, depth: int) -> Any:
    """Return a copy of an input, and append the slots of its pictures and videos to ``slots``.

    ``kind`` says what a text in a list, or under ``url``, is: "picture", "video", "frame", or None
    for a plain text. Raises ``InvalidRequest`` if the input is nested too deep.
    """
    if depth > MAX_DEPTH:
        field = field[:MAX_FIELD_CHARS]
        raise InvalidRequest(
            f"{field}: nested too deep; the limit is {MAX_DEPTH} levels", field, MAX_DEPTH
        )
    copy: Any
    items: list[tuple[Any, Any]]
    if isinstance(value, list):
        copy = list(value)
        items = list(enumerate(value))
    elif isinstance(value, dict):
        copy = dict(value)
        items = list(value.items())
    else:
        return value
    for key, item in items:
        item_field = f"{field}.{key}"
        if isinstance(value, list):
            item_kind = "frame" if kind == "video" else kind
        else:
            item_kind = _MEDIA_KEYS.get(key) or (kind if key == "url" else None)
        if item_kind == "video":
            item = split_frames(item)
        if item_kind is not None and isinstance(item, str):
            media = MediaUrl(
                item,
                item_field[:MAX_FIELD_CHARS],
                FrameRate() if item_kind == "video" else None,
                field[:MAX_FIELD_CHARS] if item_kind == "frame" else None,
            )
            slots.append(_Slot(copy, key, media))
        copy[key] = _copy(item, item_field, slots, kind=item_kind, depth=depth + 1)
    return copy


def _check_references(value: Any, field: str, files: Mapping[str, bytes]) -> None:
    """Raise ``InvalidRequest`` if an input refers to a file that didn't come with its request: that
    would be another job's."""
    if isinstance(value, (list, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _check_references(item, f"{field}.{key}", files)
    elif is_reference(value) and value not in map(make_reference, files):
        field = field[:MAX_FIELD_CHARS]
        raise InvalidRequest(f"{field}: blob: URLs are not supported", field)


def _compute_digest(body: JobRequest) -> str:
    """Return the SHA-256 of a request as it was sent."""
    text = json.dumps(body.model_dump(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _validate(model: type[BaseModel], fields: dict[str, Any]) -> Any:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        errors: list[Any] = [{**item, "loc": ("input", *item["loc"])} for item in error.errors()]
        raise from_validation(errors) from None


def read_idempotency_key(http: Request) -> str | None:
    """Return the request's idempotency key. Raises ``InvalidRequest`` if it is malformed."""
    key = http.headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest(
            f"{IDEMPOTENCY_HEADER}: expected 1 to 255 visible ASCII characters",
            IDEMPOTENCY_HEADER,
            255,
        )
    return key
