"""``runtime: cloud`` and ``runtime: photon``: Moondream's own service, or its own engine on a GPU,
through the client that the ``moondream`` package has for either."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import ContextVar, copy_context
from dataclasses import replace
from threading import Event
from typing import Any, Protocol

import moondream
from PIL import Image

from models.chat import visual_parts
from models.remote.concurrency import ConcurrencyLimiter
from models.remote.errors import SHOWN, key_of, late, of_status, unreachable
from models.remote.pictures import chat_messages
from raylens.core.config import ModelConfig, RemoteConfig
from raylens.core.errors import ModelFailed, RaylensError, UnsupportedTask
from raylens.core.types import (
    REASONING,
    Caption,
    Chat,
    Delta,
    Detect,
    Findings,
    FinishReason,
    Grounding,
    Location,
    Point,
    Query,
    Reasoning,
    Region,
    SamplingParams,
    Usage,
    VideoPart,
    VisionRequest,
)
from raylens.engine.metrics import Gauges
from raylens.engine.model import Pixels

TASKS = frozenset({Caption.name, Query.name, Detect.name, Point.name, Chat.name, REASONING})
KEY = "MOONDREAM_API_KEY"
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_PLAIN = SamplingParams()
_NOT_TAKEN = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
    "n": "n",
    "logprobs": "logprobs",
    "json_schema": "response_format",
}
"""Sampling parameters that the client has no words for, and what requests call them."""


Tell = Callable[[Delta | Exception | None], None]
"""Takes what comes of a request: its deltas, and then nothing more, or an error."""


class Client(Protocol):
    """What both of the package's clients can do."""

    def caption(self, image: Image.Image, length: str, stream: bool, settings: Any) -> Any: ...

    def query(
        self,
        image: Image.Image | None,
        question: str,
        stream: bool,
        settings: Any,
        reasoning: bool,
        spatial_refs: list[list[float]] | None,
    ) -> Any: ...

    def detect(self, image: Image.Image, object: str, settings: Any) -> Any: ...

    def point(self, image: Image.Image, object: str, settings: Any) -> Any: ...

    def chat(
        self, messages: list[Any], stream: bool, settings: Any, reasoning: bool | None
    ) -> Any: ...


def cloud(config: ModelConfig, remote: RemoteConfig) -> MoondreamRuntime:
    """Moondream Cloud, or another server that speaks its dialect."""
    urllib.request.install_opener(urllib.request.build_opener(DeadlineHandler))
    key = key_of(remote, KEY, is_its_maker=remote.base_url is None)
    endpoint = remote.base_url or moondream.DEFAULT_ENDPOINT
    return MoondreamRuntime(
        config, moondream.vl(api_key=key, endpoint=endpoint, model=remote.model), "remote"
    )


def photon(config: ModelConfig, remote: RemoteConfig) -> MoondreamRuntime:
    """Photon in this process, on the replica's GPU."""
    key = key_of(remote, KEY, is_its_maker=True)
    client = moondream.photon(remote.model or config.checkpoint, api_key=key)
    return MoondreamRuntime(config, client, "cuda", (TASKS & set(client.tasks)) | {REASONING})


class DeadlineHandler(urllib.request.BaseHandler):
    """The client would wait for ever for a server that says nothing: here each of its requests has
    a deadline."""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        deadline = _deadline.get()
        if deadline is not None:
            request.timeout = max(0.001, deadline - time.time())
        return request

    https_request = http_request


class MoondreamRuntime:
    """Implements :class:`models.runtime.Runtime`. The client blocks, so each request that runs has
    a thread, and its place until that thread is free again."""

    def __init__(
        self, config: ModelConfig, client: Client, device: str, tasks: frozenset[str] = TASKS
    ) -> None:
        self.tasks, self.device = tasks, device
        self._client = client
        self._limiter = ConcurrencyLimiter(config)
        self._threads = ThreadPoolExecutor(self._limiter.size, "raylens-runtime")
        self._abandoned: list[float] = []
        """The deadlines of requests whose threads go on, though nobody waits for them."""

    @property
    def failure(self) -> BaseException | None:
        """Implements :attr:`models.runtime.Runtime.failure`: every thread is past its request's
        deadline."""
        now = time.time()
        overdue = sum(deadline <= now for deadline in self._abandoned)
        return RuntimeError("the client hangs") if overdue >= self._limiter.size else None

    @property
    def gauges(self) -> Gauges:
        """Implements :attr:`models.runtime.Runtime.gauges`."""
        return self._limiter.gauges

    def check_capacity(self, request: VisionRequest) -> None:
        """Implements :meth:`models.runtime.Runtime.check_capacity`."""
        self._limiter.check()

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        """Implements :meth:`models.runtime.Runtime.generate`."""
        self._refuse(request)
        await self._limiter.enter(request)
        deltas: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        gone = Event()
        loop = asyncio.get_running_loop()
        _deadline.set(request.deadline)

        def tell(delta: Delta | Exception | None) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, delta)

        context = copy_context()  # the thread takes the deadline along
        work = self._threads.submit(context.run, self._work, request, pictures, tell, gone)
        try:
            while True:
                async with asyncio.timeout(max(0.0, request.remaining)):
                    delta = await deltas.get()
                if delta is None:
                    return
                if isinstance(delta, Exception):
                    raise delta
                yield delta
        except TimeoutError:
            raise late() from None
        finally:
            gone.set()
            if work.cancel() or work.done():
                self._limiter.leave()
            else:
                self._abandoned.append(request.deadline)
                work.add_done_callback(
                    lambda _: loop.call_soon_threadsafe(self._free, request.deadline)
                )

    def _free(self, deadline: float) -> None:
        self._abandoned.remove(deadline)
        self._limiter.leave()

    def _work(
        self,
        request: VisionRequest,
        pictures: Sequence[Pixels],
        tell: Callable[[Delta | Exception | None], None],
        gone: Event,
    ) -> None:
        """In a thread: tells the answer as it comes, until nobody waits for more."""
        try:
            said = self._ask(request, [Image.fromarray(picture) for picture in pictures], pictures)
            if isinstance(said, Delta):
                tell(said)
            else:
                with closing(said):
                    for text in said:
                        if gone.is_set():
                            return
                        tell(Delta(text))
                tell(_end())
            tell(None)
        except Exception as error:
            tell(_translated(error))

    def _refuse(self, request: VisionRequest) -> None:
        """Raises ``UnsupportedTask`` for what the client can't ask for."""
        task = request.task
        if task.name not in self.tasks:
            raise UnsupportedTask(
                f"this model can't {task.name}; it can {', '.join(sorted(self.tasks))}", "model"
            )
        for name, field in _NOT_TAKEN.items():
            if getattr(request.sampling, name) != getattr(_PLAIN, name):
                raise UnsupportedTask(f"{field}: this model's runtime has no such parameter", field)
        if isinstance(task, Chat) and any(
            isinstance(part, VideoPart) for part in visual_parts(task.messages)
        ):
            raise UnsupportedTask(
                "messages: this model's runtime takes pictures, but no videos", "messages"
            )

    def _ask(
        self, request: VisionRequest, images: Sequence[Image.Image], pictures: Sequence[Pixels]
    ) -> Delta | Generator[str, None, None]:
        """The whole answer, or its pieces as they come."""
        task, settings, stream = request.task, _settings(request), request.stream
        match task:
            case Caption(length):
                return _text(
                    self._client.caption(images[0], length.value, stream, settings)["caption"]
                )
            case Query(question, reasoning, places):
                # Thoughts come with a whole answer only.
                refs = [_ref(place) for place in places] or None
                image, stream = images[0] if images else None, stream and not reasoning
                answer = self._client.query(image, question, stream, settings, reasoning, refs)
                return _text(answer["answer"], _reasoning(answer))
            case Detect(subject, most):
                objects = self._client.detect(images[0], subject, settings)["objects"]
                return _end(
                    findings=Findings(regions=tuple(_region(each) for each in objects[:most]))
                )
            case Point(subject, most):
                points = self._client.point(images[0], subject, settings)["points"]
                return _end(
                    findings=Findings(
                        locations=tuple(Location(each["x"], each["y"]) for each in points[:most])
                    )
                )
            case Chat(messages, reasoning):
                stream, asked = stream and not reasoning, chat_messages(messages, pictures)
                answer = self._client.chat(asked, stream, settings, reasoning or None)
                return _said(answer)


def _text(
    said: str | Generator[str, None, None], reasoning: Reasoning | None = None
) -> Delta | Generator[str, None, None]:
    return _end(said, Findings(reasoning=reasoning)) if isinstance(said, str) else said


def _said(answer: dict[str, Any]) -> Delta | Generator[str, None, None]:
    """A chat's message, whole or in pieces."""
    message = answer["message"]
    if not isinstance(message, dict):
        pieces: Generator[str, None, None] = message
        return pieces
    thoughts = message.get("reasoning")
    details = message.get("reasoning_details") or {}
    reasoning = (
        None if thoughts is None else _reasoning({"reasoning": {"text": thoughts, **details}})
    )
    reason = FinishReason.LENGTH if answer.get("finish_reason") == "length" else FinishReason.STOP
    return replace(_end(message["content"], Findings(reasoning=reasoning)), finish_reason=reason)


def _end(text: str = "", findings: Findings | None = None) -> Delta:
    """A whole answer. The client doesn't say how many tokens it has."""
    return Delta(
        text, finish_reason=FinishReason.STOP, usage=Usage(0, 0), findings=findings or Findings()
    )


def _settings(request: VisionRequest) -> dict[str, Any]:
    sampling = request.sampling
    settings: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if isinstance(request.task, Detect | Point):
        settings["max_objects"] = request.task.max_objects
    return settings


def _translated(error: Exception) -> RaylensError:
    """The project's own error for what goes wrong in the client."""
    match error:
        case RaylensError():
            return error
        case urllib.error.HTTPError():
            with error:
                said = error.read(4 * SHOWN).decode(errors="replace")
                return of_status(error.code, error.headers.get("Retry-After"), said)
        case TimeoutError() | urllib.error.URLError(reason=TimeoutError()):
            return late()
        case urllib.error.URLError() | ConnectionError():
            return unreachable()
    return ModelFailed(f"the model's runtime failed on this request: {type(error).__name__}")


def _ref(place: Location | Region) -> list[float]:
    if isinstance(place, Location):
        return [place.x, place.y]
    return [place.x_min, place.y_min, place.x_max, place.y_max]


def _region(box: dict[str, float]) -> Region:
    return Region(box["x_min"], box["y_min"], box["x_max"], box["y_max"])


def _reasoning(answer: dict[str, Any]) -> Reasoning | None:
    told = answer.get("reasoning")
    if told is None:
        return None
    groundings = (
        Grounding(
            part["start_idx"], part["end_idx"], tuple(Location(*point) for point in part["points"])
        )
        for part in told.get("grounding") or ()
    )
    return Reasoning(told["text"], tuple(groundings))
