"""The newest frame in, the annotated frame out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import av
import numpy as np
import pytest
from aiortc.mediastreams import MediaStreamError

from raylens.core.errors import Overloaded
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.frames import Frame
from raylens.realtime.overlay import Pixels
from raylens.realtime.webrtc.backlog import DecoderQueue
from raylens.realtime.webrtc.pictures import TIME_BASE, to_picture, to_pixels
from raylens.realtime.webrtc.video import REMEMBERED_FRAMES, Video
from testing.webrtc_client import Camera, draw_number, is_marked, read_number, to_rgb, wait_until
from tests.unit.raylens.realtime.webrtc.processors import Failing, Gated, Marker


class Setting:
    """A video over a fake track, and what it reports."""

    def __init__(
        self, processor: Marker, backlog: DecoderQueue | None = None, **settings: Any
    ) -> None:
        self.processor = processor
        self.camera = Camera()
        self.messages: list[dict[str, Any]] = []
        self.ends: list[str] = []
        self.time = 100.0
        config = WebRtcConfig(**settings)
        self.video = Video(
            processor, config, self.messages.append, self.ends.append, lambda: self.time
        )
        self.video.start(self.camera, backlog)

    async def next_frame(self) -> av.VideoFrame:
        async with asyncio.timeout(10):
            return await self.video.output.recv()

    async def show(self, *numbers: int) -> None:
        """Show frames 1/30 s apart, and wait until they have been received."""
        for number in numbers:
            self.time += 1 / 30
            self.camera.show_numbers([number])
            await self.wait_received(self.video.counts.received + 1)

    async def wait_received(self, frames: int) -> None:
        await wait_until(lambda: self.video.counts.received == frames)

    async def wait_processed(self, frames: int) -> None:
        await wait_until(lambda: self.video.counts.processed == frames)


@pytest.fixture
async def gated() -> AsyncIterator[tuple[Setting, Gated]]:
    processor = Gated({}, lambda message: None)
    setting = Setting(processor)
    yield setting, processor
    await setting.video.close()


async def test_only_the_newest_frame_waits(gated: tuple[Setting, Gated]) -> None:
    setting, processor = gated
    await setting.show(0)
    await processor.wait_for(0)
    await setting.show(*range(1, 50))
    processor.gate.release()
    await processor.wait_for(49)
    processor.gate.release()
    frames = [await setting.next_frame() for _ in range(2)]
    assert [read_number(to_rgb(frame)) for frame in frames] == [0, 49]
    assert all(is_marked(to_rgb(frame)) for frame in frames)
    assert [frame.id for frame in processor.seen] == [0, 49]
    assert [frame.time_s for frame in processor.seen] == pytest.approx([0, 49 / 30])
    assert processor.seen[1].received_at == pytest.approx(100 + 50 / 30)
    counts = setting.video.counts
    assert (counts.received, counts.processed, counts.dropped, counts.not_shown) == (50, 2, 48, 0)


async def test_a_dropped_frame_costs_no_conversion(gated: tuple[Setting, Gated]) -> None:
    setting, processor = gated
    await setting.show(0)
    await processor.wait_for(0)

    for number in range(1, 4):
        unreadable = av.VideoFrame()  # of no format
        unreadable.pts = number * 3000
        with pytest.raises(OSError, match="not supported"):
            to_pixels(unreadable, 1000)
        setting.camera._frames.put_nowait(unreadable)
    await setting.wait_received(4)
    setting.camera._pts = 12_000
    await setting.show(4)
    processor.gate.release()
    await processor.wait_for(4)
    assert setting.ends == []


async def test_frames_that_were_never_decoded_count_too() -> None:
    backlog = DecoderQueue(None)  # type: ignore[arg-type]
    processor = Marker({}, lambda message: None)
    setting = Setting(processor, backlog)
    await setting.show(0)
    backlog._dropped = 5
    setting.camera.show_numbers([6])
    await setting.wait_received(7)
    await setting.wait_processed(2)
    await setting.video.close()
    assert [frame.id for frame in processor.seen] == [0, 6]
    assert setting.video.counts.dropped == 5


async def test_delay_does_not_grow_and_nothing_piles_up(gated: tuple[Setting, Gated]) -> None:
    """One of ten frames is processed, for 20 s of video."""
    setting, processor = gated
    ages = []
    for number in range(600):
        await setting.show(number)
        if number % 10 == 9:
            processor.gate.release()
            await processor.wait_for(number)
            ages.append(number - read_number(to_rgb(await setting.next_frame())))
    assert set(ages[1:]) == {10}
    assert setting.camera._frames.qsize() == 0
    assert setting.video.counts.received == 600
    assert setting.video.counts.dropped == 600 - 61


async def test_only_the_newest_annotated_frame_waits_for_the_encoder() -> None:
    processor = Marker({}, lambda message: None)
    setting = Setting(processor)
    for number in range(5):
        await setting.show(number)
        await setting.wait_processed(number + 1)
    await wait_until(lambda: setting.video.counts.not_shown == 4)
    frame = await setting.next_frame()
    await setting.video.close()
    assert read_number(to_rgb(frame)) == 4
    assert (frame.pts, frame.time_base) == (4 * 3000, TIME_BASE)


async def test_after_the_end_the_track_ends() -> None:
    setting = Setting(Marker({}, lambda message: None))
    waiting = asyncio.create_task(setting.video.output.recv())
    await asyncio.sleep(0)
    await setting.video.close()
    with pytest.raises(MediaStreamError):
        await waiting
    assert setting.video.output.readyState == "ended"


async def test_while_it_is_paused_nothing_is_processed() -> None:
    processor = Marker({}, lambda message: None)
    setting = Setting(processor)
    await setting.show(0)
    await setting.next_frame()
    setting.video.paused = True
    await setting.show(1, 2, 3)
    setting.video.paused = False
    await setting.show(4)
    frame = await setting.next_frame()
    await setting.video.close()
    assert processor.numbers == [0, 4]
    assert frame.pts == 4 * 3000
    assert setting.video.counts.dropped == 0
    assert setting.video.last_frame_at == pytest.approx(100 + 5 / 30)


async def test_a_failure_shows_the_frame_as_it_was_and_tells_when_it_is_over() -> None:
    processor = Failing({}, lambda message: None)
    processor.error = Overloaded("no room", None, None, None, 1.0)
    setting = Setting(processor)
    marked = []
    for number in (0, 1, 3, 5, 6, 7):
        await setting.show(number)
        frame = to_rgb(await setting.next_frame())
        assert read_number(frame) == number
        marked.append(is_marked(frame))
    await setting.video.close()
    assert marked == [True, False, False, False, True, False]
    told = [(each["type"], each["frame_id"], each.get("error")) for each in setting.messages]
    assert told == [
        ("error", 1, "no room"),
        ("recovered", 4, None),
        ("error", 5, "no room"),
    ]
    assert setting.ends == []


async def test_a_bug_is_not_shown_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting(Failing({}, lambda message: None))
    for number in (1, 3):
        await setting.show(number)
        await setting.next_frame()
    await setting.video.close()
    assert [(each["code"], each["error"]) for each in setting.messages] == [
        ("internal_error", "an internal error")
    ]
    assert caplog.text.count("a secret path") == 1


@pytest.mark.parametrize("shape", [(240, 321, 3), (240, 320), (240, 320, 4)])
async def test_a_processor_must_keep_the_size(shape: tuple[int, ...]) -> None:
    class Resizing(Marker):
        async def process(self, frame: Frame) -> Pixels:
            return np.zeros(shape, np.uint8)

    setting = Setting(Resizing({}, lambda message: None))
    await setting.show(5)
    frame = await setting.next_frame()
    await setting.video.close()
    assert read_number(to_rgb(frame)) == 5
    assert len(setting.messages) == 1


async def test_large_frames_are_scaled_down_and_fast_ones_dropped() -> None:
    processor = Marker({}, lambda message: None)
    setting = Setting(processor, max_pixels=320 * 240, max_fps=15)
    for number in range(8):
        setting.camera.show(draw_number(number, 640, 480))
        setting.time += 1 / 30
        await setting.wait_received(number + 1)
        await wait_until(lambda: (c := setting.video.counts).processed + c.dropped == c.received)
    frame = await setting.next_frame()
    await setting.video.close()
    assert processor.numbers == [0, 2, 4, 6]
    assert (frame.width, frame.height) == (320, 240)


async def test_huge_frames_end_the_video() -> None:
    setting = Setting(Marker({}, lambda message: None))
    setting.camera._frames.put_nowait(to_picture(np.zeros((3008, 3008, 3), np.uint8), 0))
    await wait_until(lambda: setting.ends)
    await setting.video.close()
    assert setting.ends == ["frames of 3008×3008; the limit is 9000000 pixels"]


async def test_metadata_of_the_last_frames_are_known() -> None:
    setting = Setting(Marker({}, lambda message: None))
    for number in range(REMEMBERED_FRAMES + 2):
        await setting.show(number)
        await setting.next_frame()
    video = setting.video
    last = video.describe(REMEMBERED_FRAMES + 1)
    assert (last["frame_id"], last["pts"]) == (257, 257 * 3000)
    assert last["received_at"].endswith("+00:00")
    assert video.describe(1) == {}
    assert video.describe("2") == {}
    assert video.measured_fps == pytest.approx(30)
    await video.close()
