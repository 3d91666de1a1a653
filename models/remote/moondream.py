"""``runtime: cloud`` and ``runtime: photon``: Moondream's own service, or its own engine on a GPU, through the client
that the ``moondream`` package has for either."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Protocol

from PIL import Image

from models.chat import visual_parts
from models.remote.pictures import chat_messages
from models.remote.room import Room
from raylens.config import ModelConfig, RemoteConfig
from raylens.engine.metrics import Gauges
from raylens.engine.model import Pixels
from raylens.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    Overloaded,
    RaylensError,
    UnsupportedTask,
)
from raylens.types import (
    Caption,
    Chat,
    Delta,
    Detect,
    FinishReason,
    Found,
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

TASKS = frozenset({Caption.name, Query.name, Detect.name, Point.name, Chat.name})
KEY = "MOONDREAM_API_KEY"
_deadline: ContextVar[float] = ContextVar("deadline")
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

    def chat(self, messages: list[Any], stream: bool, settings: Any) -> Any: ...


def cloud(config: ModelConfig, remote: RemoteConfig) -> MoondreamRuntime:
    """Moondream Cloud, or another server that speaks its dialect. Raises ``ImportError`` without the package."""
    import moondream

    urllib.request.install_opener(urllib.request.build_opener(Patience))
    endpoint = remote.base_url or moondream.DEFAULT_ENDPOINT
    key = os.environ.get(remote.api_key_env or KEY)
    return MoondreamRuntime(config, moondream.vl(api_key=key, endpoint=endpoint, model=remote.model), "remote")


def photon(config: ModelConfig, remote: RemoteConfig) -> MoondreamRuntime:
    """Photon in this process, on the replica's GPU. Raises ``ImportError`` without the extra ``photon``."""
    import moondream

    key = os.environ.get(remote.api_key_env or KEY)
    return MoondreamRuntime(config, moondream.photon(remote.model or config.checkpoint, api_key=key), "cuda")


class Patience(urllib.request.BaseHandler):
    """The client would wait for ever for a server that says nothing: here each of its requests has a deadline."""

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        request.timeout = max(0.001, _deadline.get() - time.time())
        return request

    https_request = http_request


class MoondreamRuntime:
    """Implements :class:`models.runtime.Runtime`. The client blocks, so each request has a thread."""

    tasks = TASKS
    failure: BaseException | None = None

    def __init__(self, config: ModelConfig, client: Client, device: str) -> None:
        self.device = device
        self._client = client
        self._room = Room(config)

    @property
    def gauges(self) -> Gauges:
        """Implements :attr:`models.runtime.Runtime.gauges`."""
        return self._room.gauges

    def check_room(self, request: VisionRequest) -> None:
        """Implements :meth:`models.runtime.Runtime.check_room`."""
        self._room.check()

    async def generate(self, request: VisionRequest, pictures: Sequence[Pixels]) -> AsyncGenerator[Delta, None]:
        """Implements :meth:`models.runtime.Runtime.generate`."""
        _refuse(request)
        _deadline.set(request.deadline)  # the threads take it along
        images = [Image.fromarray(picture) for picture in pictures]
        async with self._room.place(request):
            try:
                async with asyncio.timeout(max(0.0, request.remaining)):
                    said = await asyncio.to_thread(_translating, self._ask, request, images, pictures)
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed before the answer was complete", "deadline") from None
            if isinstance(said, Delta):
                yield said
                return
            async for text in _pieces(said, request):
                yield Delta(text)
            yield Delta(finish_reason=FinishReason.STOP, usage=Usage(0, 0), found=Found())

    def _ask(
        self, request: VisionRequest, images: Sequence[Image.Image], pictures: Sequence[Pixels]
    ) -> Delta | Iterator[str]:
        """The whole answer, or its pieces as they come."""
        task, settings, stream = request.task, _settings(request), request.stream
        match task:
            case Caption(length):
                return _text(self._client.caption(images[0], length.value, stream, settings)["caption"])
            case Query(question, reasoning, places):
                # Thoughts come with a whole answer only.
                refs = [_ref(place) for place in places] or None
                image, stream = images[0] if images else None, stream and not reasoning
                answer = self._client.query(image, question, stream, settings, reasoning, refs)
                return _text(answer["answer"], _reasoning(answer))
            case Detect(subject, most):
                objects = self._client.detect(images[0], subject, settings)["objects"]
                return _end(found=Found(regions=tuple(_region(each) for each in objects[:most])))
            case Point(subject, most):
                points = self._client.point(images[0], subject, settings)["points"]
                return _end(found=Found(locations=tuple(Location(each["x"], each["y"]) for each in points[:most])))
            case Chat(messages):
                message = self._client.chat(chat_messages(messages, pictures), stream, settings)["message"]
                return _text(message["content"] if isinstance(message, dict) else message)


async def _pieces(pieces: Iterator[str], request: VisionRequest) -> AsyncGenerator[str, None]:
    """An iterator that blocks, read in a thread, and closed once nobody waits any more."""
    try:
        while True:
            async with asyncio.timeout(max(0.0, request.remaining)):
                piece = await asyncio.to_thread(_translating, next, pieces, None)
            if piece is None:
                return
            yield piece
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the answer was complete", "deadline") from None
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            with suppress(ValueError):  # a thread reads it just now, and finds the end by itself
                close()


def _text(said: str | Iterable[str], reasoning: Reasoning | None = None) -> Delta | Iterator[str]:
    return _end(said, Found(reasoning=reasoning)) if isinstance(said, str) else iter(said)


def _end(text: str = "", found: Found | None = None) -> Delta:
    """A whole answer. The client doesn't say how many tokens it has."""
    return Delta(text, finish_reason=FinishReason.STOP, usage=Usage(0, 0), found=found or Found())


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


def _refuse(request: VisionRequest) -> None:
    """Raises ``UnsupportedTask`` for what the client can't ask for."""
    for name, field in _NOT_TAKEN.items():
        if getattr(request.sampling, name) != getattr(_PLAIN, name):
            raise UnsupportedTask(f"{field}: this model's runtime has no such parameter", field)
    task = request.task
    if isinstance(task, Chat):
        if task.reasoning:
            raise UnsupportedTask("reasoning: this model's runtime thinks in a query only", "reasoning")
        if any(isinstance(part, VideoPart) for part in visual_parts(task.messages)):
            raise UnsupportedTask("messages: this model's runtime takes pictures, but no videos", "messages")


def _translating(work: Callable[..., Any], *arguments: Any) -> Any:
    """Does the work; what goes wrong in the client comes out as an error of the project's own."""
    try:
        return work(*arguments)
    except RaylensError:
        raise
    except urllib.error.HTTPError as error:
        with error:
            raise _of_status(error) from error
    except TimeoutError as error:
        raise DeadlineExceeded("the deadline passed before the answer was complete", "deadline") from error
    except (urllib.error.URLError, ConnectionError) as error:
        raise ModelNotLoaded("the runtime's server can't be reached", "model", retry_after=1.0) from error
    except Exception as error:
        raise ModelFailed(f"the model's runtime failed on this request: {type(error).__name__}") from error


def _of_status(error: urllib.error.HTTPError) -> RaylensError:
    if error.code in (429, 503):
        wait = error.headers.get("Retry-After") or "1"
        seconds = float(wait) if wait.isdigit() else 1.0
        return Overloaded("the runtime's server is overloaded", "model", retry_after=seconds)
    if error.code in (400, 413, 422):
        said = error.read(2000).decode(errors="replace")[:500]
        return InvalidRequest(f"model: the runtime's server refused the request: {said}", "model")
    return ModelFailed(f"the runtime's server answered with status {error.code}")


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
        Grounding(part["start_idx"], part["end_idx"], tuple(Location(*point) for point in part["points"]))
        for part in told.get("grounding") or ()
    )
    return Reasoning(told["text"], tuple(groundings))
