"""Live pictures over a WebSocket, one answer after another.

Format: that of VLM Node. A text is the prompt, a binary message is a picture, and an answer comes
as JSON objects with ``response`` and ``done``, as Ollama sends them. Its client ignores messages
without both, and adds up ``response`` until ``done``. So every message has both, and what ends the
answer of one picture comes between the answers of others.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket

from raylens.api import web_sockets
from raylens.api.access_log import RequestMetrics, new_record
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
from raylens.api.ollama import Reply
from raylens.api.session_requests import session_request
from raylens.api.shared import Shared
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
from raylens.realtime.newest import Newest

logger = logging.getLogger(__name__)

PATH = "/api/v1/ws"
FIELD = "picture"
"""What error messages call a picture."""
MAX_NOTICES = 256
"""Messages that wait for the end of an answer."""
RETRY_S = 1.0
NOTICE = {"response": "", "done": False}
"""Of a message that belongs to no answer."""
_WAITED_OUT = (TooManyRequests, Overloaded, ModelNotLoaded)


@dataclass(frozen=True)
class Frame:
    """A picture, and the settings that held when it came."""

    number: int
    picture: PictureFile
    settings: FrameSettings
    received_at: float
    """``time.monotonic()``."""


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
        self._notices: deque[dict[str, Any]] = deque(maxlen=MAX_NOTICES)
        self._replaced = 0
        """Pictures since the last answer that got none."""
        self._is_answering = False
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Answer until the client disconnects. Raises ``RaylensError`` if the session must end."""
        receiving = asyncio.create_task(self._receive())
        answering = asyncio.create_task(self._answer())
        try:
            done, _ = await asyncio.wait(
                {receiving, answering}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        except web_sockets.ClientLeft:
            pass
        finally:
            for task in (receiving, answering):
                task.cancel()
            await asyncio.gather(receiving, answering, return_exceptions=True)

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

        incoming = web_sockets.messages(self._socket, idle_s, self._is_busy)
        async with aclosing(incoming):
            async for message in incoming:
                try:
                    await self._take(message)
                except RaylensError as error:
                    await self._notify(web_sockets.error_message(error))

    async def _take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._take_picture(message)
        elif message.lstrip().startswith("data:image/"):
            await self._take_text_picture(message)
        elif (control := parse_control(message)) is not None:
            await self._take_control(control)
        else:
            settings = self._settings.with_prompt(message)
            await settings.check(self._context)
            self._settings = settings

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
        if not isinstance(text, str):
            raise InvalidRequest("image: expected a data URL or base64", "image")
        deadline = time.time() + self._context.config.defaults.timeout_s
        media = self._context.media
        self._take_picture((await media.from_text(text, FIELD, deadline)).data)

    def _take_picture(self, data: bytes) -> None:
        picture = self._context.media.from_upload(data, FIELD)
        self._context.check_media(picture)
        frame = Frame(next(self._numbers), picture, self._settings, time.monotonic())
        self._remember(frame)
        if (replaced := self._newest.put(frame)) is not None:
            self._drop(replaced)

    def _remember(self, frame: Frame) -> None:
        """Keep a picture for questions about several of them."""
        frames, interval_s = frame.settings.frames, frame.settings.frame_interval_s
        if frames == 1:
            self._history.clear()
        elif not self._history or frame.received_at - self._history[-1].received_at >= interval_s:
            self._history.append(frame)
        limit = self._context.config.limits.max_video_bytes
        while len(self._history) > frames or self._history_bytes() > limit:
            self._history.popleft()

    def _history_bytes(self) -> int:
        return sum(len(frame.picture.data) for frame in self._history)

    def _drop(self, frame: Frame) -> None:
        """Report, after the present answer, that a newer picture took a picture's place."""
        self._replaced += 1
        message = {"response": "", "done": True, "replaced": True, "frame": frame.number}
        self._notices.append(message)

    async def _notify(self, message: dict[str, Any]) -> None:
        """Send a message that ends an answer, but not amid another one."""
        self._notices.append(message)
        if not self._is_answering:
            await self._send_notices()

    async def _send_notices(self) -> None:
        while self._notices:
            await self._send(self._notices.popleft())

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await web_sockets.send(self._socket, message)

    async def _answer(self) -> None:
        while True:
            await self._newest.wait()
            self._is_answering = True
            await self._answer_newest()
            await self._send_notices()
            self._is_answering = False

    async def _answer_newest(self) -> None:
        """Answer the newest picture. While the model or a limit has no room, newer ones take its
        place, for as long as a request may take."""
        give_up_at = time.monotonic() + self._context.config.defaults.timeout_s
        while (frame := self._newest.take()) is not None:
            try:
                await self._answer_frame(frame)
                return
            except (Unauthorized, PermissionDenied):
                raise  # the session ends, too
            except RaylensError as error:
                wait_s = min(error.retry_after or RETRY_S, give_up_at - time.monotonic())
                if not isinstance(error, _WAITED_OUT) or wait_s <= 0:
                    await self._end_answer(frame, web_sockets.error_message(error))
                    return
            except web_sockets.ClientLeft:
                raise
            except Exception:
                logger.exception("a picture's request failed")
                message = web_sockets.error_message(RaylensError("an internal error"))
                await self._end_answer(frame, message)
                return
            if (replaced := self._newest.put_back(frame)) is not None:
                self._drop(replaced)
            await asyncio.sleep(wait_s)

    async def _answer_frame(self, frame: Frame) -> None:
        """Send a picture's answer. Raises ``RaylensError`` before its first message."""
        authorize = self._socket.scope.get("state", {}).get("authorize")
        if authorize is not None:
            authorize()
        record = new_record(self._socket.scope, "WS")
        record.route = PATH
        async with session_request(self._shared, self._metrics, record):
            ending = await self._stream(frame)
            record.status = ending.get("status", 200)
        await self._end_answer(frame, ending)

    async def _stream(self, frame: Frame) -> dict[str, Any]:
        """Send the parts of an answer, and return its last message."""
        context, settings = self._context, frame.settings
        model = await settings.select_model(context)
        frames = [frame] if settings.frames == 1 else list(self._history)
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
        has_begun = False
        try:
            deltas = context.service.generate(request, [frame.picture for frame in frames])
            async with aclosing(deltas):
                async for delta in deltas:
                    answer.add(delta)
                    if delta.text:
                        await self._send({**answer.part(delta.text), "frame": frame.number})
                        has_begun = True
            return answer.ending()
        except RaylensError as error:
            if not has_begun:
                raise
            return web_sockets.error_message(error)

    async def _end_answer(self, frame: Frame, message: dict[str, Any]) -> None:
        replaced, self._replaced = self._replaced, 0
        age_ms = round(1000 * (time.monotonic() - frame.received_at), 1)
        about = {"frame": frame.number, "age_ms": age_ms, "replaced_frames": replaced}
        await self._send({**message, **about})


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
            stages = asdict(self._timings).items()
            message["timings"] = {f"{name}_ms": round(1000 * value, 1) for name, value in stages}
        return message
