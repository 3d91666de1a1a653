"""Live pictures over a WebSocket, one answer after another.

Format: that of VLM Node. A text is the prompt, a binary message is a picture, and an answer comes
as JSON objects with ``response`` and ``done``, as Ollama sends them. Its client ignores messages
without both, and adds up ``response`` until ``done``. So every message has both, and what ends the
answer of one picture comes between the answers of others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket

from raylens.api import web_sockets
from raylens.api.access_log import AccessRecord, RequestMetrics, new_record, recording
from raylens.api.clients import client_of
from raylens.api.context import Context
from raylens.api.frame_settings import (
    PING,
    PONG,
    SETTINGS,
    Control,
    FrameSettings,
    parse_control,
)
from raylens.api.grounding_json import findings_as_json, reasoning_as_json
from raylens.api.held_bytes import HeldBytes
from raylens.api.json_limits import check_json
from raylens.api.ollama import Reply
from raylens.api.session_requests import admission
from raylens.api.shared import Shared
from raylens.api.web_sockets import END
from raylens.core.concurrency import until_first
from raylens.core.errors import (
    InvalidRequest,
    ModelNotLoaded,
    Overloaded,
    PermissionDenied,
    RaylensError,
    TooManyRequests,
    Unauthorized,
)
from raylens.core.types import (
    Delta,
    Detect,
    Findings,
    PictureFile,
    Point,
    Timings,
    VisionRequest,
)
from raylens.realtime.messages import INTERNAL_ERROR, error_message
from raylens.realtime.newest import Closed, Newest

logger = logging.getLogger(__name__)

PATH = "/api/v1/ws"
FIELD = "picture"
"""What error messages call a picture."""
MAX_NOTICES = 256
"""Messages of a kind that wait for the end of an answer."""
MAX_CLIP_BYTES = 16 * 2**20
"""Of the files of one question's pictures, which each session holds."""
RETRY_S = 1.0
NOTICE = {"response": "", "done": False}
"""Of a message that belongs to no answer."""
_RETRYABLE = (TooManyRequests, Overloaded, ModelNotLoaded)


@dataclass(frozen=True)
class Frame:
    """A picture, and the settings that held when it came."""

    number: int
    picture: PictureFile
    settings: FrameSettings
    received_at: float
    """``time.monotonic()``."""
    before: tuple[Frame, ...] = ()
    """Earlier pictures that the question is about, too, without those before them."""

    @property
    def clip(self) -> tuple[Frame, ...]:
        return (*self.before, self)


def router(shared: Shared, metrics: RequestMetrics) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.websocket(PATH)
    async def answer_frames(socket: WebSocket) -> None:
        await web_sockets.run_session(socket, shared, FrameSession(socket, shared, metrics).run)

    return routes


class FrameSession:
    """One connection. The newest picture is answered next; those that wait meanwhile are replaced,
    counted and reported."""

    def __init__(self, socket: WebSocket, shared: Shared, metrics: RequestMetrics) -> None:
        self._socket = socket
        self._shared = shared
        self._metrics = metrics
        self._settings = FrameSettings()
        self._numbers = count(1)
        self._newest: Newest[Frame] = Newest()
        self._history: deque[Frame] = deque()
        """The last pictures, for questions about several of them."""
        client = client_of(socket.scope.get("client"))
        self._held = HeldBytes(shared.bodies, client, self._history.clear)
        """Those of the last pictures."""
        self._replaced: deque[Frame] = deque(maxlen=MAX_NOTICES)
        """Those whose end is not yet told."""
        self._replaced_count = 0
        """Pictures since the last answer that got none."""
        self._errors: deque[dict[str, Any]] = deque(maxlen=MAX_NOTICES)
        """Messages that wait, because a part of an answer was the last one."""
        self._is_answering = False
        self._answering = math.inf
        """The number of the picture that is answered: those after it end after its answer."""
        self._is_amid_answer = False
        self._stopping = asyncio.Event()
        """Set once the server drains."""
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Answer until the client disconnects. Raises ``RaylensError`` if the session must end."""
        try:
            await until_first(self._receive(), self._answer())
        except web_sockets.ClientLeft:
            pass
        finally:
            self._held.set(0)

    def _stop(self) -> None:
        """End the session after the answer that runs."""
        self._stopping.set()
        if self._newest.is_empty:
            self._newest.close()

    @property
    def _context(self) -> Context:
        """The present one: limits, recipes and models may change during a session."""
        assert self._shared.context is not None
        return self._shared.context

    def _is_busy(self) -> bool:
        return self._is_answering or not self._newest.is_empty

    async def _receive(self) -> None:
        def idle_s() -> float:
            return self._shared.config.realtime.idle_timeout_s

        incoming = web_sockets.messages(self._socket, idle_s, self._is_busy, self._stop)
        async with aclosing(incoming):
            async for message in incoming:
                try:
                    await self._take(message)
                except RaylensError as error:
                    self._errors.append(_failed(error))
                except Exception as error:
                    if isinstance(error, web_sockets.ClientLeft):
                        raise
                    logger.exception("a message could not be read")
                    self._errors.append(_failed(INTERNAL_ERROR))
                await self._send_notices()

    async def _take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._take_picture(message)
        elif message.lstrip().startswith("data:image/"):
            await self._take_text_picture(message)
        elif (control := self._parse_control(message)) is not None:
            await self._take_control(control)
        else:
            settings = self._settings.with_prompt(message)
            await settings.check(self._context)
            self._settings = settings

    def _parse_control(self, message: str) -> Control | None:
        limits = self._shared.config.limits
        check_json(message.encode(errors="replace"), limits.max_json_bytes, limits.max_json_values)
        return parse_control(message)

    async def _take_control(self, control: Control) -> None:
        if control.kind == PING:
            await self._send({"type": PONG, **NOTICE})
        elif control.kind == SETTINGS:
            settings = self._settings.changed(control.changes)
            await settings.check(self._context)
            self._settings = settings
            if control.changes or control.picture is None:
                await self._send({"type": SETTINGS, **NOTICE, "settings": settings.as_json()})
            if control.picture is not None:
                await self._take_text_picture(control.picture)

    async def _take_text_picture(self, text: Any) -> None:
        if not isinstance(text, str) or text.lstrip().startswith(("http:", "https:")):
            raise InvalidRequest("image: expected a data URL or base64", "image")
        deadline = time.time() + self._context.config.defaults.timeout_s
        media = self._context.media
        self._take_picture((await media.from_text(text, FIELD, deadline)).data)

    def _take_picture(self, data: bytes) -> None:
        picture = self._context.media.from_upload(data, FIELD)
        self._context.check_media(picture)
        frame = Frame(next(self._numbers), picture, self._settings, time.monotonic())
        if self._settings.frames > 1:
            frame = replace(frame, before=self._earlier(frame))
        else:
            self._history.clear()
        self._held.set(sum(len(each.picture.data) for each in self._history))
        self._drop(self._newest.put(frame))

    def _earlier(self, frame: Frame) -> tuple[Frame, ...]:
        """Return the pictures before one that its question is about, too."""
        history, settings = self._history, frame.settings
        last = history[-1].received_at if history else -math.inf
        earlier = list(history)[1 - settings.frames :]
        size = len(frame.picture.data) + sum(len(each.picture.data) for each in earlier)
        limit = min(MAX_CLIP_BYTES, self._context.config.limits.max_video_bytes)
        while earlier and size > limit:
            size -= len(earlier.pop(0).picture.data)
        if frame.received_at - last >= settings.frame_interval_s:
            history.append(frame)
        while history and (len(history) > settings.frames or history[0] not in (*earlier, frame)):
            history.popleft()
        return tuple(earlier)

    def _drop(self, frame: Frame | None) -> None:
        """Note that a newer picture took a picture's place."""
        if frame is not None:
            self._replaced_count += 1
            self._replaced.append(frame)

    async def _send_notices(self) -> None:
        """Send what ends answers of pictures, but not amid another answer, and in their order."""
        while not self._is_amid_answer:
            if self._replaced and self._replaced[0].number < self._answering:
                number = self._replaced.popleft().number
                message = {**END, "replaced": True, "frame": number}
            elif self._errors:
                message = self._errors.popleft()
            else:
                return
            await self._send(message)

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await web_sockets.send(self._socket, message)

    async def _answer(self) -> None:
        """Answer one picture after the other. Raises ``ServerStops`` once the server drains."""
        with suppress(Closed):
            while not (self._stopping.is_set() and self._newest.is_empty):
                await self._newest.wait()
                self._is_answering = True
                await self._answer_newest()
                self._is_answering = False
                await self._send_notices()
        await self._send_notices()
        raise web_sockets.ServerStops

    async def _answer_newest(self) -> None:
        """Answer the newest picture.

        Raises ``Unauthorized`` and ``PermissionDenied`` if the client may not ask any more.
        """
        self._shared.authorize(self._socket.scope)
        record = new_record(self._socket.scope, "WS")
        record.route = PATH
        with recording(record, self._metrics):
            frame, ending = await self._find_answer(record)
            record.status = ending.get("status", 200)
        replaced, self._replaced_count = self._replaced_count, 0
        age_ms = round(1000 * (time.monotonic() - frame.received_at), 1)
        about = {"frame": frame.number, "age_ms": age_ms, "replaced_frames": replaced}
        await self._send({**ending, **about})
        self._is_amid_answer = False
        self._answering = math.inf

    async def _find_answer(self, record: AccessRecord) -> tuple[Frame, dict[str, Any]]:
        """Return the newest picture, and the last message of its answer.

        While the model or a limit has no room, newer pictures take its place, for as long as a
        request may take.
        """
        give_up_at = time.monotonic() + self._context.config.defaults.timeout_s
        async with AsyncExitStack() as stack:
            is_admitted = False
            while True:
                frame = self._newest.take()
                assert frame is not None, "nobody else takes pictures"
                self._answering = frame.number
                try:
                    if self._stopping.is_set():
                        raise web_sockets.ServerStops
                    if not is_admitted:
                        await stack.enter_async_context(admission(self._shared, record))
                        is_admitted = True
                    return frame, await self._stream(frame)
                except (Unauthorized, PermissionDenied, web_sockets.ClientLeft):
                    raise
                except web_sockets.ServerStops as error:
                    return frame, _failed(error)
                except RaylensError as error:
                    wait_s = min(error.retry_after or RETRY_S, give_up_at - time.monotonic())
                    if not isinstance(error, _RETRYABLE) or wait_s <= 0:
                        return frame, _failed(error)
                except Exception:
                    logger.exception("a picture's request failed")
                    return frame, _failed(INTERNAL_ERROR)
                self._answering = math.inf
                self._drop(self._newest.put_back(frame))
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._stopping.wait()

    async def _stream(self, frame: Frame) -> dict[str, Any]:
        """Send the parts of an answer, and return its last message."""
        context, settings = self._context, frame.settings
        model = await settings.select_model(context)
        frames = frame.clip
        request = context.new_request(
            uuid.uuid4().hex,
            time.time() + context.timeout_of(model),
            model,
            settings.build_task([frame.received_at for frame in frames]),
            settings.build_sampling(context),
            settings.recipe,
            stream=True,
        )
        answer = FrameAnswer(request)
        try:
            deltas = context.service.generate(request, [frame.picture for frame in frames])
            async with aclosing(deltas):
                async for delta in deltas:
                    answer.add(delta)
                    if delta.text:
                        self._is_amid_answer = True
                        await self._send({**answer.part(delta.text), "frame": frame.number})
            return answer.ending()
        except RaylensError as error:
            if not self._is_amid_answer:
                raise
            return _failed(error)


class FrameAnswer:
    """The messages of one answer."""

    def __init__(self, request: VisionRequest) -> None:
        self._task = request.task
        self._reply = Reply(request, request.model, is_chat=False)
        self._findings: Findings | None = None
        self._timings: Timings | None = None

    def add(self, delta: Delta) -> None:
        self._reply.add(delta)
        self._findings = delta.findings or self._findings
        self._timings = delta.timings or self._timings

    def part(self, text: str) -> dict[str, Any]:
        return self._reply.piece(text, [], done=False)

    def ending(self) -> dict[str, Any]:
        """Return the last message. Raises ``ModelFailed`` if the answer isn't complete."""
        message = self._reply.last("", [])
        del message["context"]  # which continues a conversation with Ollama
        if isinstance(self._task, Detect | Point):
            message |= findings_as_json(self._findings)
        if self._findings is not None and self._findings.reasoning is not None:
            message["reasoning"] = reasoning_as_json(self._findings.reasoning)
        if self._timings is not None:
            message["timings"] = self._timings.as_json()
        return message


def _failed(error: RaylensError) -> dict[str, Any]:
    """Return the last message of an answer that failed."""
    return {**END, **error_message(error)}
