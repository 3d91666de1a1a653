"""``runtime: cloud`` and ``runtime: photon``: Moondream's service, or its own engine on a GPU.

Both are reached through clients of the ``moondream`` package.
"""

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

from models.chat import refuse_pixel_limits, visual_parts
from models.remote.concurrency import LimitedRuntime
from models.remote.errors import (
    MAX_REASON,
    api_key,
    deadline_exceeded,
    error_from_status,
    server_unreachable,
    videos_not_supported,
)
from models.remote.pictures import chat_messages
from raylens.core.config import ModelConfig, RemoteConfig
from raylens.core.errors import ModelFailed, RaylensError, UnsupportedTask
from raylens.core.types import (
    REASONING,
    Caption,
    Chat,
    Completion,
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
from raylens.engine.model import Pixels

TASKS = frozenset({Caption.name, Query.name, Detect.name, Point.name, Chat.name, REASONING})
API_KEY_ENV = "MOONDREAM_API_KEY"
MAX_THREADS = 256
"""Upper bound of ``max_batch_size``. A thread starts when it is needed."""
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
"""The running request's deadline, for :class:`DeadlineHandler`."""
_DEFAULT_SAMPLING = SamplingParams()
_UNSUPPORTED_PARAMETERS = {
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
    "min_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "logit_bias": "logit_bias",
}
"""Sampling parameters that the client lacks, and their names in a request."""

Answer = Delta | Generator[str, None, None]
"""A whole answer, or its pieces of text as they come."""

Send = Callable[[Delta | Exception | None], None]
"""Passes on an answer: its deltas and then None, or an error."""


class Client(Protocol):
    """The methods that both clients of the package have."""

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
    """Return a runtime on Moondream Cloud, or on another server with the same API."""
    urllib.request.install_opener(urllib.request.build_opener(DeadlineHandler))
    key = api_key(remote, API_KEY_ENV, is_default_server=remote.base_url is None)
    endpoint = remote.base_url or moondream.DEFAULT_ENDPOINT
    client = moondream.vl(api_key=key, endpoint=endpoint, model=remote.model)
    return MoondreamRuntime(config, client, "remote")


def photon(config: ModelConfig, remote: RemoteConfig) -> MoondreamRuntime:
    """Return a runtime on Photon, which runs in this process on the replica's GPU."""
    key = api_key(remote, API_KEY_ENV, is_default_server=True)
    client = moondream.photon(remote.model or config.checkpoint, api_key=key)
    return MoondreamRuntime(config, client, "cuda", (TASKS & set(client.tasks)) | {REASONING})


class DeadlineHandler(urllib.request.BaseHandler):
    """Gives each request of the client a timeout, the time until the request's deadline.

    The client sets none, and would wait forever for a silent server.
    """

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        deadline = _deadline.get()
        if deadline is not None:
            request.timeout = max(0.001, deadline - time.time())
        return request

    https_request = http_request


class MoondreamRuntime(LimitedRuntime):
    """Calls a client in threads, because the client blocks.

    Each running request has a thread, and keeps its slot until that thread is free again.
    """

    def __init__(
        self, config: ModelConfig, client: Client, device: str, tasks: frozenset[str] = TASKS
    ) -> None:
        super().__init__(config)
        self.tasks = tasks
        self.frames_as_pictures = 1
        self.device = device
        self._client = client
        self._threads = ThreadPoolExecutor(MAX_THREADS, "raylens-runtime")
        self._abandoned: list[float] = []
        """Deadlines of ended requests whose threads are still in the client."""

    @property
    def failure(self) -> BaseException | None:
        now = time.time()
        overdue = sum(deadline <= now for deadline in self._abandoned)
        if overdue < self._limiter.max_running:
            return None
        return RuntimeError("the client hangs: every thread is past its request's deadline")

    async def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        self._check_supported(request)
        await self._limiter.acquire(request)
        deltas: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        cancelled = Event()
        loop = asyncio.get_running_loop()
        _deadline.set(request.deadline)

        def send(delta: Delta | Exception | None) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, delta)

        context = copy_context()  # gives the deadline to the thread
        work = self._threads.submit(
            context.run, self._run_client, request, pictures, send, cancelled
        )
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
            raise deadline_exceeded() from None
        finally:
            cancelled.set()
            if work.cancel() or work.done():
                self._limiter.release()
            else:
                self._abandoned.append(request.deadline)
                work.add_done_callback(
                    lambda _: loop.call_soon_threadsafe(self._release_late, request.deadline)
                )

    def _release_late(self, deadline: float) -> None:
        """Free the slot of a request that ended before its thread."""
        self._abandoned.remove(deadline)
        self._limiter.release()

    def _run_client(
        self, request: VisionRequest, pictures: Sequence[Pixels], send: Send, cancelled: Event
    ) -> None:
        """Send the client's answer as it comes, in a thread, until the request is cancelled."""
        try:
            images = [Image.fromarray(picture) for picture in pictures]
            answer = self._call_client(request, images, pictures)
            if isinstance(answer, Delta):
                send(answer)
            else:
                with closing(answer):
                    for text in answer:
                        if cancelled.is_set():
                            return
                        send(Delta(text))
                send(_final_delta())
            send(None)
        except Exception as error:
            send(_to_raylens_error(error))

    def _check_supported(self, request: VisionRequest) -> None:
        """Raises ``UnsupportedTask`` if the client lacks the task or a parameter."""
        task = request.task
        if task.name not in self.tasks:
            raise UnsupportedTask(
                f"model: {task.name} is not supported; this model supports"
                f" {', '.join(sorted(self.tasks))}",
                "model",
            )
        for name, field in _UNSUPPORTED_PARAMETERS.items():
            if getattr(request.sampling, name) != getattr(_DEFAULT_SAMPLING, name):
                raise UnsupportedTask(f"{field}: not supported by this model's runtime", field)
        if not isinstance(task, Chat):
            return
        if any(isinstance(part, VideoPart) for part in visual_parts(task.messages)):
            raise videos_not_supported()
        if task.tools is not None and task.tools.required:
            raise UnsupportedTask(
                "tool_choice: this model's runtime can't be made to call a tool", "tool_choice"
            )
        refuse_pixel_limits(task)

    def _call_client(
        self, request: VisionRequest, images: Sequence[Image.Image], pictures: Sequence[Pixels]
    ) -> Answer:
        """Call the client's method for the task. ``images`` and ``pictures`` are the same."""
        task = request.task
        settings = _settings(request)
        # The client returns reasoning only with a whole answer.
        stream = request.stream and not getattr(task, "reasoning", False)
        match task:
            case Caption(length):
                answer = self._client.caption(images[0], length.value, stream, settings)
                return _text_answer(answer["caption"])
            case Query(question, reasoning, spatial_refs):
                refs = [_spatial_ref(ref) for ref in spatial_refs] or None
                image = images[0] if images else None
                answer = self._client.query(image, question, stream, settings, reasoning, refs)
                return _text_answer(answer["answer"], _reasoning(answer.get("reasoning")))
            case Detect(subject, max_objects):
                boxes = self._client.detect(images[0], subject, settings)["objects"]
                regions = tuple(_region(box) for box in boxes[:max_objects])
                return _final_delta(findings=Findings(regions=regions))
            case Point(subject, max_objects):
                points = self._client.point(images[0], subject, settings)["points"]
                locations = tuple(
                    Location(point["x"], point["y"]) for point in points[:max_objects]
                )
                return _final_delta(findings=Findings(locations=locations))
            case Completion():
                raise AssertionError("not among the supported tasks")
            case Chat(messages, reasoning):
                body = chat_messages(messages, pictures)
                return _chat_answer(self._client.chat(body, stream, settings, reasoning or None))


def _text_answer(
    text: str | Generator[str, None, None], reasoning: Reasoning | None = None
) -> Answer:
    if not isinstance(text, str):
        return text
    return _final_delta(text, Findings(reasoning=reasoning))


def _chat_answer(answer: dict[str, Any]) -> Answer:
    """Parse the client's answer to a chat. Its message is a dictionary or a stream of text."""
    message = answer["message"]
    if not isinstance(message, dict):
        pieces: Generator[str, None, None] = message
        return pieces
    reasoning = None
    if message.get("reasoning") is not None:
        details = message.get("reasoning_details") or {}
        reasoning = _reasoning({"text": message["reasoning"], **details})
    delta = _final_delta(message["content"], Findings(reasoning=reasoning))
    if answer.get("finish_reason") == "length":
        return replace(delta, finish_reason=FinishReason.LENGTH)
    return delta


def _final_delta(text: str = "", findings: Findings | None = None) -> Delta:
    """Return the last delta of an answer. The client does not report token counts."""
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


def _to_raylens_error(error: Exception) -> RaylensError:
    match error:
        case RaylensError():
            return error
        case urllib.error.HTTPError():
            with error:
                message = error.read(4 * MAX_REASON).decode(errors="replace")
                return error_from_status(error.code, error.headers.get("Retry-After"), message)
        case TimeoutError() | urllib.error.URLError(reason=TimeoutError()):
            return deadline_exceeded()
        case urllib.error.URLError() | ConnectionError():
            return server_unreachable()
    return ModelFailed(f"the model's runtime failed on this request: {type(error).__name__}")


def _spatial_ref(ref: Location | Region) -> list[float]:
    if isinstance(ref, Location):
        return [ref.x, ref.y]
    return [ref.x_min, ref.y_min, ref.x_max, ref.y_max]


def _region(box: dict[str, float]) -> Region:
    return Region(box["x_min"], box["y_min"], box["x_max"], box["y_max"])


def _reasoning(reasoning: dict[str, Any] | None) -> Reasoning | None:
    if reasoning is None:
        return None
    groundings = (_grounding(grounding) for grounding in reasoning.get("grounding") or ())
    return Reasoning(reasoning["text"], tuple(groundings))


def _grounding(grounding: dict[str, Any]) -> Grounding:
    points = tuple(Location(*point) for point in grounding["points"])
    return Grounding(grounding["start_idx"], grounding["end_idx"], points)
