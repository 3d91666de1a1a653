"""Questions about frames, asked over HTTP in Moondream's dialect."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from raylens.cli.client import Client
from raylens.cli.errors import BUSY, RESTARTING, ClientError, StatusError, Unreachable
from raylens.core.errors import ModelFailed, Overloaded
from raylens.core.types import Location, Region
from raylens.realtime.frames import Frame
from raylens.realtime.jpeg import encode_jpeg
from raylens.realtime.live_session import AskModel, ModelAnswer, shrink
from raylens.realtime.overlay import Pixels
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature

DESCRIBE_VIDEO = "Describe the video."
MIN_CLIP_S = 0.001
ABOUT_ONE_FRAME = frozenset({413, 415, 500})
"""HTTP statuses of errors that may concern one frame only."""


def make_request(frames: Sequence[Frame], settings: MoondreamConfig) -> tuple[str, dict[str, Any]]:
    """Return the path and the JSON of a question about a frame, or a video of several."""
    if len(frames) > 1:
        return "/v1/chat/completions", _ask_about_video(frames, settings)
    body: dict[str, Any] = {
        "image_url": to_data_url(frames[0].pixels),
        "settings": {"temperature": settings.temperature},
    }
    match settings.feature:
        case MoondreamFeature.CAPTION:
            body["length"] = settings.caption_length.value
        case MoondreamFeature.QUERY:
            body["question"] = settings.question
        case MoondreamFeature.DETECT | MoondreamFeature.POINT:
            body["object"] = settings.detect_object
            body["settings"]["max_objects"] = settings.max_objects
    if settings.model:
        body["model"] = settings.model
    return f"/v1/{settings.feature.value}", body


def _ask_about_video(frames: Sequence[Frame], settings: MoondreamConfig) -> dict[str, Any]:
    is_query = settings.feature is MoondreamFeature.QUERY
    seconds = frames[-1].time_s - frames[0].time_s
    video = {
        "type": "video",
        "video": [to_data_url(shrink(frame.pixels)) for frame in frames],
        "fps": (len(frames) - 1) / max(seconds, MIN_CLIP_S),
    }
    text = {"type": "text", "text": settings.question if is_query else DESCRIBE_VIDEO}
    body = {
        "messages": [{"role": "user", "content": [video, text]}],
        "temperature": settings.temperature,
    }
    return {**body, "model": settings.model} if settings.model else body


def read_answer(answer: dict[str, Any], settings: MoondreamConfig) -> FrameResult:
    """Return what an answer says. Raises ``ModelFailed`` if it isn't one."""
    try:
        if "choices" in answer:  # about a video
            return FrameResult(str(answer["choices"][0]["message"]["content"]).strip())
        match settings.feature:
            case MoondreamFeature.CAPTION:
                return FrameResult(str(answer["caption"]).strip())
            case MoondreamFeature.QUERY:
                return FrameResult(str(answer["answer"]).strip())
            case MoondreamFeature.DETECT:
                sides = ("x_min", "y_min", "x_max", "y_max")
                boxes = (Region(*(box[side] for side in sides)) for box in answer["objects"])
                return FrameResult(regions=tuple(boxes))
            case MoondreamFeature.POINT:
                points = (Location(point["x"], point["y"]) for point in answer["points"])
                return FrameResult(locations=tuple(points))
    except (LookupError, TypeError) as error:
        raise ModelFailed(f"the answer has no {error}; is this a raylens server?") from None


def to_data_url(pixels: Pixels) -> str:
    """Return a frame as the data URL of a JPEG file."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels)).decode("ascii")


@dataclass
class PatientQuestions:
    """Asks about the frames of a file: each question is repeated until it has an answer."""

    client: Client

    async def __call__(self, frames: Sequence[Frame], settings: MoondreamConfig) -> FrameResult:
        """Raises ``ModelFailed`` if the model fails on this frame, and ``ClientError`` if it would
        fail on the others, too."""
        path, body = await asyncio.to_thread(make_request, frames, settings)
        try:
            return read_answer(await self.client.ask(path, body), settings)
        except StatusError as error:
            message = _name_frame(str(error), frames)
            if error.status not in ABOUT_ONE_FRAME:
                raise StatusError(error.status, message) from None
            raise ModelFailed(message) from None


def _name_frame(message: str, frames: Sequence[Frame]) -> str:
    """Return an error's message, which names the request's field, with the frame's number."""
    reason = message.removeprefix("image_url: ")
    return message if reason == message else f"frame {frames[0].id}: {reason}"


class LiveQuestions(AskModel):
    """Asks about the newest frames of a live source: each question is asked once.

    ``fatal`` is set to the error that ends the watch: the server refuses the question, or it has
    been away for longer than the client's patience. A server that is busy is waited for.
    """

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._away_since: float | None = None
        self.fatal: asyncio.Future[ClientError] = asyncio.get_running_loop().create_future()

    async def __call__(self, frames: Sequence[Frame], settings: MoondreamConfig) -> ModelAnswer:
        path, body = await asyncio.to_thread(make_request, frames, settings)
        try:
            answer = await self._client.ask_once(path, body)
        except StatusError as error:
            message = _name_frame(str(error), frames)
            raise self._judge(StatusError(error.status, message, error.retry_after)) from None
        except httpx.TransportError as error:
            raise self._note_outage(str(error) or type(error).__name__) from None
        self._away_since = None
        return ModelAnswer(read_answer(answer, settings), settings.model)

    def _judge(self, error: StatusError) -> Exception:
        if error.status in BUSY:
            self._away_since = None
            self._client.notify_once(f"busy: {error.status}", f"waiting for the server: {error}")
            return Overloaded(str(error), None, None, None, error.retry_after)
        if error.status in RESTARTING - ABOUT_ONE_FRAME:
            return self._note_outage(str(error))
        if error.status not in ABOUT_ONE_FRAME:
            self._end(error)
        return ModelFailed(str(error))

    def _note_outage(self, reason: str) -> Exception:
        now, patience, server = self._clock(), self._client.patience_s, self._client.server
        if self._away_since is None:
            self._away_since = now
            message = f"{server}: {reason}; retrying for up to {patience:g} s"
            self._client.notify_once("outage", message)
        if now >= self._away_since + patience:
            hint = "Is the server running, and is --server correct?"
            message = f"{server}: no response for {patience:g} s: {reason}. {hint}"
            self._end(Unreachable(message))
        return Overloaded(reason)

    def _end(self, error: ClientError) -> None:
        if not self.fatal.done():
            self.fatal.set_result(error)
