from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest

from raylens.core.errors import InvalidRequest, RaylensError
from raylens.realtime.frames import Frame
from raylens.realtime.sources.address import parse_url
from raylens.realtime.sources.base import Source, SourceFrame, SourceOptions, SourceUnavailable
from raylens.realtime.sources.live import Backoff, LiveFrames, SourceState, SourceStatus
from raylens.realtime.sources.opening import open_source
from testing.mjpeg_server import WebCamera, running_web_camera
from testing.rtsp_server import RtspCamera, running_camera
from tests.unit.raylens.realtime.sources.drawn import gray, jpeg, number_of
from tests.unit.raylens.realtime.sources.test_http import open_descriptors

LOST = SourceUnavailable("cam: lost", "source")


class Script:
    """A source of frames that a test shows one by one, from any thread."""

    is_live = True

    def __init__(self) -> None:
        self._items: list[int | RaylensError | None] = []
        self._changed = threading.Condition()
        self.is_closed = False
        self.taken = 0

    def show(self, *items: int | RaylensError | None) -> None:
        with self._changed:
            self._items += items
            self._changed.notify_all()

    def read(self) -> SourceFrame | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self.is_closed)
            if self.is_closed:
                raise SourceUnavailable("cam: it is closed", "source")
            item = self._items.pop(0)
            self.taken += 1
            self._changed.notify_all()
        if isinstance(item, RaylensError):
            raise item
        return None if item is None else SourceFrame(gray(item), item / 10)

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def wait_taken(self, count: int) -> None:
        """Wait until the thread has come back for the item after this many."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.taken >= count and not self._items, 5)


class Live:
    """Live frames of scripts, with a clock and waits that are noted instead of waited."""

    def __init__(self, *scripts: Script, errors: Iterator[Exception] | None = None) -> None:
        self.scripts = list(scripts)
        self.opened: list[Script] = []
        self.states: list[SourceState] = []
        self.waits: list[float] = []
        self.now = 1000.0
        self.frames = LiveFrames(
            self.open,
            self.states.append,
            reconnect=Backoff(1, 30, 10),
            sleep=self.sleep,
            clock=lambda: self.now,
            pick=lambda: 1.0,
        )

    def open(self) -> Source:
        script = self.scripts.pop(0)
        self.opened.append(script)
        return script

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)


async def next_number(frames: AsyncGenerator[Frame, None]) -> int:
    async with asyncio.timeout(5):
        return number_of((await anext(frames)).pixels)


async def test_the_newest_frame_wins_and_ids_count_all() -> None:
    script = Script()
    live = Live(script)
    async with contextlib.aclosing(live.frames.frames()) as frames:
        script.show(1)
        assert await next_number(frames) == 1
        script.show(2, 3, 4, 5)
        await asyncio.to_thread(script.wait_taken, 5)
        script.show(6)
        await asyncio.to_thread(script.wait_taken, 6)
        async with asyncio.timeout(5):
            frame = await anext(frames)
        while number_of(frame.pixels) != 6:  # the thread may still hold it
            frame = await anext(frames)
        assert frame.id == 5
        assert live.frames.received == 6
        assert live.frames.dropped >= 3
    assert live.states == [
        SourceState(SourceStatus.CONNECTING, None, 1),
        SourceState(SourceStatus.CONNECTED),
    ]
    assert script.is_closed


async def test_it_connects_again_with_longer_and_longer_waits() -> None:
    scripts = [Script() for _ in range(8)]
    for script in scripts[:6]:
        script.show(LOST)
    scripts[6].show(1, None)
    live = Live(*scripts)
    numbers = [number_of(frame.pixels) async for frame in live.frames.frames()]
    assert numbers == [1]
    assert live.waits == [1, 2, 4, 8, 16, 30]
    assert live.states[:3] == [
        SourceState(SourceStatus.CONNECTING, None, 1),
        SourceState(SourceStatus.LOST, "cam: lost", 1),
        SourceState(SourceStatus.CONNECTING, "cam: lost", 2),
    ]
    assert live.states[-1] == SourceState(SourceStatus.CONNECTED)
    assert all(script.is_closed for script in live.opened)


async def test_waits_begin_anew_after_a_good_while() -> None:
    scripts = [Script() for _ in range(5)]
    live = Live(*scripts)
    scripts[0].show(LOST)
    scripts[1].show(LOST)
    scripts[2].show(1)  # and is lost after a second
    frames = live.frames.frames()
    assert await next_number(frames) == 1
    live.now += 1
    scripts[2].show(LOST)
    scripts[3].show(2)
    assert await next_number(frames) == 2
    live.now += 10
    scripts[3].show(LOST)
    scripts[4].show(3)
    assert await next_number(frames) == 3
    assert live.waits == [1, 2, 4, 1]
    await frames.aclose()


async def test_ids_and_times_go_on_over_an_outage() -> None:
    first, second = Script(), Script()
    live = Live(first, second)
    frames = live.frames.frames()
    first.show(1)
    async with asyncio.timeout(5):
        before = await anext(frames)
    live.now += 7
    first.show(LOST)
    second.show(2)
    async with asyncio.timeout(5):
        after = await anext(frames)
    await frames.aclose()
    assert (before.id, before.time_s) == (0, 0)
    assert (after.id, after.time_s, after.received_at) == (1, 7, 1007)


async def test_an_invalid_request_ends_it() -> None:
    script = Script()
    script.show(InvalidRequest("source: no video", "source"))
    live = Live(script)
    with pytest.raises(InvalidRequest, match="no video"):
        await next_number(live.frames.frames())
    assert live.waits == []
    assert script.is_closed


async def test_an_unexpected_error_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    script = Script()
    live = Live(script)
    live.scripts.insert(0, None)  # type: ignore[arg-type]  # AttributeError
    script.show(1)
    frames = live.frames.frames()
    assert await next_number(frames) == 1
    await frames.aclose()
    assert live.states[1].problem == "source: an internal error"
    assert "a source failed" in caplog.text


async def test_the_last_frame_of_a_source_is_not_lost() -> None:
    script = Script()
    script.show(1)
    live = Live(script)
    frames = live.frames.frames()
    assert await next_number(frames) == 1
    script.show(2, None)
    await asyncio.to_thread(script.wait_taken, 3)
    assert await next_number(frames) == 2
    with pytest.raises(StopAsyncIteration):
        await next_number(frames)


OPTIONS = SourceOptions(open_timeout_s=60, read_timeout_s=60)


async def close_during(url: str, has_frames: bool, is_connected: Callable[[], bool]) -> None:
    live = LiveFrames(lambda: open_source(parse_url(url), OPTIONS))
    frames = live.frames()
    if has_frames:
        assert (await anext(frames)).pixels.size
    waiting = asyncio.create_task(anext(frames))
    await until(is_connected)
    started = asyncio.get_running_loop().time()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await frames.aclose()
    assert asyncio.get_running_loop().time() - started < 1


@pytest.mark.parametrize("has_frames", [True, False])
async def test_aclose_frees_thread_and_source_of_cameras_that_hang(has_frames: bool) -> None:
    web = WebCamera([jpeg(1)], hang_at=int(has_frames))
    rtsp = RtspCamera([gray(1)] * 20, hang_at=40 if has_frames else 0)
    with running_web_camera(web), running_camera(rtsp):
        before = open_descriptors(), threading.active_count()
        for count in (4, 8):

            def are_connected(count: int = count) -> bool:
                return web.connections == rtsp.connections == count

            await asyncio.gather(
                *(close_during(url, has_frames, are_connected) for url in (web.url(), rtsp.url) * 4)
            )
        assert (open_descriptors(), threading.active_count()) == before
        await until(lambda: web.open_connections == rtsp.open_connections == 0)


async def test_a_camera_that_comes_back_is_seen_again() -> None:
    camera = RtspCamera([gray(number) for number in range(20)], end_at=20)
    states: list[SourceState] = []
    with running_camera(camera):
        live = LiveFrames(
            lambda: open_source(parse_url(camera.url)), states.append, reconnect=Backoff(0.05)
        )
        async with asyncio.timeout(20), contextlib.aclosing(live.frames()) as frames:
            frame = await anext(frames)
            while camera.connections < 3 or states[-1].status is not SourceStatus.CONNECTED:
                frame = await anext(frames)
    assert [state.status.value for state in states] == [
        *("connecting", "connected", "lost") * 2,
        "connecting",
        "connected",
    ]
    assert states[2].problem is not None
    assert "the stream ended" in states[2].problem
    assert frame.id == live.received - 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
