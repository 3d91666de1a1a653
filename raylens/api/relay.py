"""The whole API over one WebSocket, for web pages that can reach a server in no other way.

Format: the relay of Scope (``daydreamlive/scope``, ``fal_app.py``). Each request inside is one of
HTTP: it has the connection's key, and the same limits.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import uuid
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import httpx
from fastapi import APIRouter
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from raylens.api import web_sockets
from raylens.api.clients import KEY_HEADERS, client_of
from raylens.api.held_bytes import HeldBytes
from raylens.api.json_limits import check_json
from raylens.api.middleware import REQUEST_ID_HEADER
from raylens.api.shared import Shared
from raylens.api.webrtc import PREFIX as WEBRTC
from raylens.core.concurrency import until_first
from raylens.core.errors import (
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    RaylensError,
    TooManyRequests,
)
from raylens.realtime.messages import INTERNAL_ERROR, error_message

logger = logging.getLogger(__name__)

PATH = "/api/v1/relay"
ALLOWED = ("/api/v1/", "/v1/", "/caption", "/describe", "/surveillance", "/model/")
ALLOWED_EXACTLY = ("/health", "/live", "/ready", "/vram_status")
PLUGINS = "/api/v1/plugins"
SIGNALS = ("get_ice_servers", "offer", "icecandidate")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
BASE64 = "_base64_content"
CONTENT_TYPE = "_content_type"
"""Keys of a body that isn't JSON."""
BINARY = ("video/", "audio/", "image/", "application/octet-stream")
MAX_ANSWER_BYTES = 16 * 2**20
"""What WebSockets carry in one message, as most servers and clients are set."""
MAX_AT_ONCE = 16
"""Requests of one connection."""


def router(shared: Shared) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.websocket(PATH)
    async def relay(socket: WebSocket) -> None:
        await web_sockets.run_session(socket, shared, RelaySession(socket, shared).run)

    return routes


@dataclass(frozen=True)
class Answer:
    """An answer of HTTP."""

    status: int
    content_type: str = ""
    content: bytes = b""
    error: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.status < 400

    @property
    def data(self) -> Any:
        """The JSON, or the text."""
        try:
            return json.loads(self.content)
        except ValueError:
            return self.content.decode(errors="replace")

    @property
    def message(self) -> str:
        """Say why a request failed."""
        if self.error is not None:
            return self.error
        data = self.data
        if isinstance(data, dict):
            detail = data.get("detail") or data.get("error") or ""
            data = detail.get("message", "") if isinstance(detail, dict) else detail
        return str(data) or f"status {self.status}"


@dataclass
class RelaySession:
    """One connection."""

    socket: WebSocket
    shared: Shared
    connection_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __post_init__(self) -> None:
        self._session_id: str | None = None
        """Of the last offer, for candidates that name none."""
        self._numbers = count(1)
        self._signals: asyncio.Queue[tuple[dict[str, Any], int]] = asyncio.Queue(MAX_AT_ONCE)
        """Messages of WebRTC, whose order matters, and their sizes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        """Set once the server drains."""
        self._must_give_way = asyncio.Event()
        client = client_of(self.socket.scope.get("client"))
        self._held = HeldBytes(self.shared.bodies, client, self._must_give_way.set)
        """Those of the messages that wait for their answers."""
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Answer until the client disconnects. Raises ``RaylensError`` if the session must end."""
        try:
            await self._send({"type": "ready", "connection_id": self.connection_id})
            await until_first(
                self._receive(), self._answer_signals(), self._stop(), self._give_way()
            )
        except web_sockets.ClientLeft:
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._held.set(0)

    async def _receive(self) -> None:
        def idle_s() -> float:
            return self.shared.config.realtime.idle_timeout_s

        incoming = web_sockets.messages(
            self.socket, idle_s, lambda: bool(self._tasks), self._stopping.set
        )
        async with aclosing(incoming):
            async for message in incoming:
                await self._take(message)

    async def _stop(self) -> None:
        """Once the server drains, wait for the answers that run, and raise ``ServerStops``."""
        await self._stopping.wait()
        await asyncio.gather(*self._tasks)
        await self._signals.join()
        raise web_sockets.ServerStops

    async def _give_way(self) -> None:
        """Raise ``Overloaded`` once others need the memory."""
        await self._must_give_way.wait()
        self._hold(0)

    def _hold(self, size: int) -> None:
        """Count a message until its answer. Raises ``Overloaded`` if others need the memory."""
        self._held.add(size)
        if not self._must_give_way.is_set():
            return
        message = "the requests of this connection are too large beside those of others"
        raise Overloaded(message, None, None, None, web_sockets.RECONNECT_S)

    async def _take(self, message: str | bytes) -> None:
        """Answer a message; requests are answered in tasks of their own, in any order."""
        try:
            payload = self._parse(message)
        except RaylensError as error:
            await self._send(error_message(error))
            return
        if payload.get("type") in SIGNALS and not self._signals.full():
            self._hold(len(message))
            self._signals.put_nowait((payload, len(message)))
        elif payload.get("type") == "api" and len(self._tasks) < MAX_AT_ONCE:
            self._hold(len(message))
            task = asyncio.create_task(self._reply(payload))
            self._tasks.add(task)
            task.add_done_callback(partial(self._forget, len(message)))
        elif payload.get("type") in ("api", *SIGNALS):
            busy = f"{MAX_AT_ONCE} requests of this connection are in flight; the limit is that"
            refusal = error_message(TooManyRequests(busy))
            if payload["type"] == "api":
                refusal = {"type": "api_response", "status": 429, "error": busy}
            await self._send_answer(payload, refusal)
        else:
            await self._reply(payload)

    def _forget(self, size: int, task: asyncio.Task[None]) -> None:
        """Note that a request of ``size`` bytes has been answered."""
        self._tasks.discard(task)
        self._held.add(-size)

    async def _answer_signals(self) -> None:
        while True:
            payload, size = await self._signals.get()
            await self._reply(payload)
            self._held.add(-size)
            self._signals.task_done()

    async def _reply(self, payload: Mapping[str, Any]) -> None:
        try:
            answer = await self._answer(payload)
        except RaylensError as error:
            answer = error_message(error)
        except Exception:
            logger.exception("a message of the relay could not be answered")
            answer = error_message(INTERNAL_ERROR)
        with suppress(web_sockets.ClientLeft):  # which ends the session elsewhere
            await self._send_answer(payload, answer)

    async def _send_answer(self, payload: Mapping[str, Any], answer: dict[str, Any]) -> None:
        if "request_id" in payload:
            answer["request_id"] = payload["request_id"]
        await self._send(answer)

    async def _answer(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        match payload.get("type"):
            case "api":
                return await self._call(payload)
            case "ping":
                return {"type": "pong"}
            case "set_user_id":
                return {"type": "user_id_set", "user_id": payload.get("user_id")}
            case "get_ice_servers":
                answer = await self._request("GET", f"{WEBRTC}/ice-servers")
                return {"type": "ice_servers", "data": answer.data, "status": answer.status}
            case "offer":
                return await self._offer(payload)
            case "icecandidate":
                return await self._add_candidate(payload)
        raise InvalidRequest(f"Unknown message type: {str(payload.get('type'))[:64]}", "type")

    async def _offer(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        body = {
            "sdp": payload.get("sdp"),
            "type": payload.get("sdp_type", "offer"),
            "initialParameters": payload.get("initialParameters"),
        }
        answer = await self._request("POST", f"{WEBRTC}/offer", body)
        if not answer.is_ok:
            return _failure("Offer failed", answer)
        data = answer.data
        self._session_id = data["sessionId"]
        return {
            "type": "answer",
            "sdp": data["sdp"],
            "sdp_type": data["type"],
            "sessionId": self._session_id,
        }

    async def _add_candidate(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        session_id = payload.get("sessionId") or self._session_id
        if not session_id:
            raise InvalidRequest("No session ID available for ICE candidate", "sessionId")
        candidate = payload.get("candidate")
        if candidate is None:
            return {"type": "icecandidate_ack", "status": "end_of_candidates"}
        path = f"{WEBRTC}/offer/{session_id}"
        answer = await self._request("PATCH", path, {"candidates": [candidate]})
        if not answer.is_ok:
            return _failure("ICE candidate failed", answer)
        return {"type": "icecandidate_ack", "status": "ok"}

    async def _call(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        method, path = str(payload.get("method", "GET")).upper(), payload.get("path")
        try:
            answer = await self._request(method, path, payload.get("body"))
        except RaylensError as error:
            answer = Answer(error.http_status, error=error.message)
        except Exception:
            logger.exception("a request of the relay failed")
            answer = Answer(500, error="an internal error")
        reply: dict[str, Any] = {"type": "api_response", "status": answer.status}
        if answer.error is None and answer.is_ok and answer.content_type.startswith(BINARY):
            reply[BASE64] = base64.b64encode(answer.content).decode()
            reply[CONTENT_TYPE] = answer.content_type
            reply["_content_length"] = len(answer.content)
        elif answer.error is None:
            reply["data"] = answer.data
        if not answer.is_ok:
            reply["error"] = answer.message
        return reply

    async def _request(self, method: str, path: Any, body: Any = None) -> Answer:
        """Return the answer of this very application.

        Raises ``InvalidRequest`` if the relay doesn't pass a request on.
        """
        if method not in METHODS:
            raise InvalidRequest(f"Unsupported method: {method[:16]}", "method")
        url = self._url(path)
        if url.path.startswith(PLUGINS) and method != "GET":
            return Answer(403, error="Plugin installation is not available over the relay")
        if url.path.endswith("/events"):
            raise InvalidRequest("path: streams of events can't be relayed; ask again", "path")
        headers, content = self._headers(), None
        if isinstance(body, dict) and BASE64 in body:
            content = _decode(body[BASE64])
            headers["Content-Type"] = str(body.get(CONTENT_TYPE, "application/octet-stream"))
        elif body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        client = self.socket.client or ("", 0)
        assert self.shared.app is not None
        app = BoundedApp(self.shared.app, MAX_ANSWER_BYTES)
        transport = httpx.ASGITransport(
            app, raise_app_exceptions=False, client=(client[0], client[1])
        )
        async with httpx.AsyncClient(transport=transport) as http:
            response = await http.request(method, url, headers=headers, content=content)
        if app.is_exceeded:
            message = f"the answer has more than {MAX_ANSWER_BYTES} bytes, the relay's limit"
            return Answer(413, error=message)
        content_type = response.headers.get("content-type", "")
        return Answer(response.status_code, content_type, response.content)

    def _url(self, path: Any) -> httpx.URL:
        """Return the URL of a path of the API. Raises ``InvalidRequest`` for any other."""
        host = self.socket.headers.get("host", "localhost")
        if isinstance(path, str) and path.startswith("/") and not path.startswith("//"):
            try:
                url = httpx.URL(f"http://{host}{path}")
            except httpx.InvalidURL:
                url = httpx.URL()
            is_plain = ".." not in url.path.split("/") and not url.path.startswith(PATH)
            if is_plain and (url.path.startswith(ALLOWED) or url.path in ALLOWED_EXACTLY):
                return url
        allowed = ", ".join((*ALLOWED, *ALLOWED_EXACTLY))
        raise InvalidRequest(
            f"path: {str(path)[:64]!r} is not relayed; paths begin with {allowed}", "path"
        )

    def _headers(self) -> dict[str, str]:
        """Return the headers of a request with the connection's key."""
        request_id = f"{self.connection_id}-{next(self._numbers)}"
        headers = {REQUEST_ID_HEADER: request_id}
        for name in ("authorization", "sec-websocket-protocol", *KEY_HEADERS):
            if value := self.socket.headers.get(name):
                headers[name] = value
        return headers

    def _parse(self, message: str | bytes) -> dict[str, Any]:
        """Return a message. Raises ``InvalidRequest`` and ``PayloadTooLarge``."""
        if isinstance(message, bytes):
            raise InvalidRequest("expected a text of JSON; a body may have _base64_content")
        limits = self.shared.config.limits
        check_json(message.encode(errors="replace"), limits.max_json_bytes, limits.max_json_values)
        try:
            payload = json.loads(message)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"Invalid JSON: {error}"[:200]) from None
        if not isinstance(payload, dict):
            raise InvalidRequest("Invalid JSON: expected an object")
        return payload

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await web_sockets.send(self.socket, message)


class BoundedApp:
    """Stops an application whose answer grows beyond a limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._left = max_bytes
        self.is_exceeded = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count_bytes(message: Message) -> None:
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.is_exceeded = True
                raise PayloadTooLarge("the answer is too long")
            await send(message)

        await self._app(scope, receive, count_bytes)


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InvalidRequest(f"body.{BASE64}: invalid base64", f"body.{BASE64}") from None


def _failure(what: str, answer: Answer) -> dict[str, Any]:
    error = f"{what}: {answer.status}"
    return {"type": "error", "error": error, "status": answer.status, "detail": answer.message}
