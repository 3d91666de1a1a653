"""A session's video: the newest frame in, the annotated frame out.

Frames never queue up. The received track is emptied at once; of what it had, only the newest frame
waits while another is processed, and only the newest annotated one while the encoder is busy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import av
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

from raylens.core.errors import RaylensError
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.frames import Frame, FrameProcessor, Report
from raylens.realtime.messages import INTERNAL_ERROR, error_message
from raylens.realtime.newest import Closed, Newest
from raylens.realtime.overlay import Pixels
from raylens.realtime.webrtc.backlog import DecoderQueue
from raylens.realtime.webrtc.pictures import (
    CLOCK_RATE,
    MAX_DECODED_PIXELS,
    TIME_BASE,
    FrameRateLimit,
    FrameRateMeter,
    Timeline,
    to_picture,
    to_pixels,
)

logger = logging.getLogger(__name__)

REMEMBERED_FRAMES = 256
"""Processed frames whose times are known when their results come."""


@dataclass(frozen=True)
class Arrival:
    """A received frame, as the decoder gave it."""

    picture: av.VideoFrame
    id: int
    pts: int
    """In ticks of 1/90000 s."""
    received_at: float
    """By ``time.monotonic``."""
    wall_time: datetime

    @property
    def metadata(self) -> dict[str, Any]:
        """What results say about their frame, by Roboflow's names."""
        return {
            "frame_id": self.id,
            "received_at": self.wall_time.isoformat(timespec="milliseconds"),
            "pts": self.pts,
            "time_base": 1 / CLOCK_RATE,
        }


@dataclass(frozen=True)
class FrameCounts:
    """Frames of a session so far."""

    received: int = 0
    processed: int = 0
    dropped: int = 0
    """Frames that were replaced by newer ones, or came faster than allowed."""
    not_shown: int = 0
    """Processed frames that were replaced by newer ones before they could be encoded."""


class OutgoingTrack(MediaStreamTrack):
    """The annotated video. It has a frame when one is ready, and repeats none."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._newest: Newest[av.VideoFrame] = Newest()
        self.replaced = 0

    def show(self, picture: av.VideoFrame) -> None:
        self.replaced += self._newest.put(picture) is not None

    async def recv(self) -> av.VideoFrame:
        try:
            return await self._newest.get()
        except Closed:
            raise MediaStreamError from None

    def stop(self) -> None:
        self._newest.close()
        super().stop()


class Video:
    """Runs a processor over a received track.

    ``report`` gets what the processor raises, and when it works again; ``on_end`` is called with a
    reason if the video can't go on.
    """

    def __init__(
        self,
        processor: FrameProcessor,
        config: WebRtcConfig,
        report: Report,
        on_end: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.output = OutgoingTrack()
        self.paused = False
        self._processor = processor
        self._max_pixels = config.max_pixels
        self._report = report
        self._on_end = on_end
        self._clock = clock
        self._newest: Newest[Arrival] = Newest()
        self._timeline = Timeline()
        self._limit = FrameRateLimit(config.max_fps)
        self._meter = FrameRateMeter()
        self._received = self._processed = self._dropped = 0
        self._processed_frames: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_error = ""
        self.last_frame_at: float | None = None
        """When the last frame came, by the clock."""

    @property
    def counts(self) -> FrameCounts:
        return FrameCounts(self._received, self._processed, self._dropped, self.output.replaced)

    @property
    def measured_fps(self) -> float | None:
        """Frames per second that come in."""
        return self._meter.fps

    def describe(self, frame_id: Any) -> dict[str, Any]:
        """Return the metadata of a processed frame; empty if it is unknown, or too old."""
        return self._processed_frames.get(frame_id, {}) if isinstance(frame_id, int) else {}

    def start(self, track: MediaStreamTrack, backlog: DecoderQueue | None = None) -> None:
        """Start to receive and to process."""
        self._tasks = [
            asyncio.create_task(self._run(self._receive(track, backlog))),
            asyncio.create_task(self._run(self._process())),
        ]

    async def close(self) -> None:
        """Stop."""
        self._newest.close()
        self.output.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._processed_frames.clear()

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            logger.exception("the video of a session failed")
            self._on_end("an internal error")

    async def _receive(self, track: MediaStreamTrack, backlog: DecoderQueue | None) -> None:
        """Empty the track. Frames that are dropped cost no conversion."""
        while True:
            try:
                picture = await track.recv()
            except MediaStreamError:
                self._on_end("the client's video ended")
                return
            assert isinstance(picture, av.VideoFrame)
            if picture.width * picture.height > MAX_DECODED_PIXELS:
                size = f"{picture.width}×{picture.height}"
                self._on_end(f"frames of {size}; the limit is {MAX_DECODED_PIXELS} pixels")
                return
            if backlog is not None:
                self._count_dropped(backlog.take_dropped())
            self._arrive(picture)

    def _count_dropped(self, frames: int) -> None:
        self._received += frames
        self._dropped += frames

    def _arrive(self, picture: av.VideoFrame) -> None:
        now = self._clock()
        self.last_frame_at = now
        self._meter.add(now)
        pts = self._timeline.map(picture.pts or 0, now)
        arrival = Arrival(picture, self._received, pts, now, datetime.now(UTC))
        self._received += 1
        if self.paused:
            return
        if not self._limit.takes(pts) or self._newest.put(arrival) is not None:
            self._dropped += 1

    async def _process(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                arrival = await self._newest.get()
            except Closed:
                return
            pixels = await loop.run_in_executor(None, to_pixels, arrival.picture, self._max_pixels)
            self._remember(arrival)
            annotated = await self._annotate(arrival, pixels)
            self._processed += 1
            picture = await loop.run_in_executor(None, to_picture, annotated, arrival.pts)
            self.output.show(picture)

    async def _annotate(self, arrival: Arrival, pixels: Pixels) -> Pixels:
        """Return the annotated frame; the frame as it was, if the processor fails."""
        time_s = float(arrival.pts * TIME_BASE)
        frame = Frame(pixels, arrival.id, time_s, arrival.received_at)
        try:
            annotated = await self._processor.process(frame)
            if annotated.shape != pixels.shape or annotated.dtype != pixels.dtype:
                raise TypeError(f"a frame of {annotated.shape} {annotated.dtype}")
        except RaylensError as error:
            self._fail(arrival, error, str(error))
            return pixels
        except Exception as error:
            if self._last_error != repr(error):  # not for every frame
                logger.exception("frame %d could not be processed", arrival.id)
            self._fail(arrival, INTERNAL_ERROR, repr(error))
            return pixels
        if self._last_error:
            self._last_error = ""
            self._report({"type": "recovered", "frame_id": arrival.id})
        return annotated

    def _fail(self, arrival: Arrival, error: RaylensError, name: str) -> None:
        """Report an error, but one that goes on only once. ``name`` tells it from others."""
        if name != self._last_error:
            self._last_error = name
            self._report({**error_message(error), "frame_id": arrival.id})

    def _remember(self, arrival: Arrival) -> None:
        self._processed_frames[arrival.id] = arrival.metadata
        while len(self._processed_frames) > REMEMBERED_FRAMES:
            self._processed_frames.popitem(last=False)
