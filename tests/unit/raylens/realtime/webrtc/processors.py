"""Processors of the frames of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from raylens.core.errors import InvalidRequest
from raylens.realtime.frames import Frame, Report
from raylens.realtime.overlay import Pixels
from testing.webrtc_client import read_number, wait_until


class Marker:
    """Draws a red mark into each frame, and reports the frame's number."""

    def __init__(self, parameters: Mapping[str, Any], report: Report) -> None:
        self.parameters = dict(parameters)
        self.seen: list[Frame] = []
        self.is_closed = False
        self._report = report
        if parameters.get("question") == "":
            raise InvalidRequest("question: empty", "question")

    async def process(self, frame: Frame) -> Pixels:
        self.seen.append(frame)
        number = read_number(frame.pixels)
        self._report({"frame_id": frame.id, "number": number, "time_s": frame.time_s})
        annotated = frame.pixels.copy()
        height, width = annotated.shape[:2]
        annotated[height // 2 :, width // 4 : 3 * width // 4] = (230, 20, 20)
        return annotated

    def change(self, parameters: Mapping[str, Any]) -> None:
        if "unknown" in parameters:
            raise InvalidRequest("unknown: no such setting", "unknown")
        self.parameters.update(parameters)

    async def close(self) -> None:
        self.is_closed = True

    @property
    def numbers(self) -> list[int]:
        return [read_number(frame.pixels) for frame in self.seen]


class Gated(Marker):
    """Processes a frame only when the test opens the gate for it."""

    def __init__(self, parameters: Mapping[str, Any], report: Report) -> None:
        super().__init__(parameters, report)
        self.gate = asyncio.Semaphore(0)
        self.waiting_for: int | None = None

    async def process(self, frame: Frame) -> Pixels:
        self.waiting_for = read_number(frame.pixels)
        await self.gate.acquire()
        return await super().process(frame)

    async def wait_for(self, number: int) -> None:
        """Wait until this frame is before the gate."""
        await wait_until(lambda: self.waiting_for == number)


class Failing(Marker):
    """Fails on frames with odd numbers."""

    def __init__(self, parameters: Mapping[str, Any], report: Report) -> None:
        super().__init__(parameters, report)
        self.error: Exception = ValueError("a secret path")

    async def process(self, frame: Frame) -> Pixels:
        if read_number(frame.pixels) % 2:
            raise self.error
        return await super().process(frame)
