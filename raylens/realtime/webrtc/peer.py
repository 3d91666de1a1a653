"""One WebRTC session: its negotiation, its life, and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
)

from raylens.core.errors import Conflict
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.frames import FrameProcessor, OpenProcessor
from raylens.realtime.webrtc.channels import Channels, take_paused
from raylens.realtime.webrtc.ice_report import make_report
from raylens.realtime.webrtc.negotiation import (
    give_answer,
    read_answer,
    take_offer,
    watch_encryption,
)
from raylens.realtime.webrtc.offer import Offer, parse_offer
from raylens.realtime.webrtc.remote_candidates import RemoteCandidates
from raylens.realtime.webrtc.video import FrameCounts, Video

logger = logging.getLogger(__name__)

MAX_CHANNELS = 8
"""Data channels that a client may open. Only those that are known by name are used."""
FAREWELL_TIMEOUT_S = 0.5
"""For the last messages to reach the network."""
CLOSE_TIMEOUT_S = 5.0
_GONE = "the client has gone: it answers no more"


class Status(StrEnum):
    NEW = "new"
    """Not negotiated yet."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    ENDED = "ended"


@dataclass(frozen=True)
class PeerState:
    """A session at one moment."""

    id: str
    client: str
    status: Status
    reason: str = ""
    """Why it has ended."""
    frames: FrameCounts = field(default_factory=FrameCounts)
    measured_fps: float | None = None
    dropped_results: int = 0
    """Messages that the client was too slow for."""


@dataclass(frozen=True)
class Environment:
    """What the sessions of a process have in common."""

    config: WebRtcConfig
    addresses: Sequence[str]
    """To listen on."""
    open_processor: OpenProcessor
    clock: Callable[[], float] = time.monotonic


class Peer:
    """A session. It is used on one event loop.

    It ends by itself if no connection comes about, if no frames come, or if the client goes; then
    ``on_end`` is called with it, once.
    """

    def __init__(
        self,
        session_id: str,
        client: str,
        environment: Environment,
        ice_servers: Sequence[RTCIceServer] = (),
        on_end: Callable[[Peer], None] = lambda peer: None,
    ) -> None:
        self.id = session_id
        self.client = client
        self._environment = environment
        self._config = environment.config
        self._on_end = on_end
        self._connection = RTCPeerConnection(_configure(ice_servers))
        self._channels = Channels(self._change, self._pause)
        self._processor: FrameProcessor | None = None
        self._video: Video | None = None
        self._candidates: RemoteCandidates | None = None
        self._open_channels = 0
        self._status = Status.NEW
        self._reason = ""
        self._retry_after: float | None = None
        self._connected_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._negotiation = asyncio.Lock()
        """Held while there is an answer to come, so that nothing is closed under it."""
        self._closing: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    @property
    def state(self) -> PeerState:
        video = self._video
        return PeerState(
            self.id,
            self.client,
            self._status,
            self._reason,
            FrameCounts() if video is None else video.counts,
            None if video is None else video.measured_fps,
            self._channels.dropped,
        )

    async def wait_ended(self) -> PeerState:
        """Wait until the session has ended, and everything of it is closed."""
        await self._ended.wait()
        return self.state

    async def answer(self, sdp: str, kind: str, parameters: Mapping[str, Any]) -> str:
        """Return the SDP answer to an offer, with all candidates of this side.

        ``parameters`` are the first ones. Raises ``InvalidRequest``, ``Conflict`` if there has been
        an offer before, and ``Overloaded`` if no port is free.
        """
        if self._status is not Status.NEW:
            raise Conflict(
                f"session {self.id} has been negotiated; end it, and offer a new one", "sdp"
            )
        self._status = Status.CONNECTING
        try:
            async with self._negotiation:
                return await self._answer(parse_offer(sdp, kind), dict(parameters))
        except BaseException:
            await self.close("the offer could not be answered")
            raise

    async def _answer(self, offer: Offer, parameters: dict[str, Any]) -> str:
        addresses = self._environment.addresses
        paused = take_paused(parameters)
        self._processor = self._environment.open_processor(parameters, self._report)
        self._video = Video(
            self._processor, self._config, self._report, self._end, self._environment.clock
        )
        self._video.paused = bool(paused)
        self._connection.on("datachannel", self._on_channel)
        self._connection.on("connectionstatechange", self._on_connection_state)
        await take_offer(self._connection, offer)
        self._check_open()
        watch_encryption(self._connection, self._on_encryption_closed)
        await give_answer(self._connection, offer, self._video, self._config, addresses)
        self._candidates = RemoteCandidates(
            self._connection, offer.mids, addresses, self._config.resolve_mdns
        )
        await self._candidates.add_offered(offer.candidates)
        self._check_open()
        self._set_timer(self._config.connect_timeout_s, self._on_connect_timeout)
        return read_answer(self._connection, self._config)

    def _check_open(self) -> None:
        """Raise ``Conflict`` if the session was ended meanwhile."""
        if self._closing is not None:
            raise Conflict(f"session {self.id} has ended: {self._reason}")

    async def add_candidates(self, entries: Sequence[Any]) -> None:
        """Add candidates that came after the offer, as ``RTCIceCandidateInit`` objects.

        An empty one, or None, says that no more will come. Raises ``InvalidRequest``, and then adds
        none; and ``Conflict`` if there has been no offer.
        """
        if self._candidates is None or self._status is Status.ENDED:
            raise Conflict(f"session {self.id} has no connection", "candidates")
        await self._candidates.add(entries)

    async def close(self, reason: str, retry_after: float | None = None) -> None:
        """End the session, and tell the client why. It may be called at any time.

        ``retry_after`` is the number of seconds after which another session may be opened, if the
        server closes this one for a reason of its own.
        """
        self._retry_after = retry_after
        self._end(reason)
        await self._ended.wait()

    def _end(self, reason: str) -> None:
        if self._closing is None:
            self._reason = reason
            self._closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        self._status = Status.ENDED
        if self._timer is not None:
            self._timer.cancel()
        try:
            async with self._negotiation:
                await self._release(self._video)
                await self._release(self._processor)
                if self._is_connected:
                    await self._say_farewell()
                await self._release(self._connection)
        finally:
            logger.info("session %s ended: %s", self.id, self._reason)
            self._on_end(self)
            self._ended.set()

    async def _say_farewell(self) -> None:
        farewell: dict[str, Any] = {"type": "stream_stopped", "error_message": self._reason}
        if self._retry_after is not None:
            farewell["retry_after"] = self._retry_after
        self._channels.send_everywhere(farewell)
        deadline = time.monotonic() + FAREWELL_TIMEOUT_S
        while not self._are_messages_sent() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    def _are_messages_sent(self) -> bool:
        sctp = self._connection.sctp
        is_sent = sctp is None or not (sctp._outbound_queue or sctp._sent_queue)
        return is_sent and self._channels.are_empty

    async def _release(self, part: Video | FrameProcessor | RTCPeerConnection | None) -> None:
        if part is None:
            return
        try:
            await asyncio.wait_for(part.close(), CLOSE_TIMEOUT_S)
        except Exception:
            name = type(part).__name__
            logger.exception("session %s: its %s could not be closed", self.id, name)

    @property
    def _is_connected(self) -> bool:
        return self._connection.connectionState == "connected"

    def _set_timer(self, delay: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._closing is None:
            self._timer = asyncio.get_running_loop().call_later(delay, callback)

    def _on_connect_timeout(self) -> None:
        self._end(f"no connection within {self._config.connect_timeout_s:g} s: {self._explain()}")

    def _explain(self) -> str:
        assert self._candidates is not None
        usable, unusable = self._candidates.usable, self._candidates.unusable
        report = make_report(self._connection, usable, unusable)
        has_turn = any(server.is_turn for server in self._config.ice_servers)
        return report.explain(has_turn, self._config.public_address)

    def _on_connection_state(self) -> None:
        match self._connection.connectionState:
            case "connected" if self._status is Status.CONNECTING:
                self._status = Status.CONNECTED
                self._connected_at = self._environment.clock()
                self._set_timer(self._config.idle_timeout_s, self._on_idle_timer)
            case "failed" if self._status is Status.CONNECTED:
                self._end(_GONE)
            case "failed":
                self._end(f"no connection: {self._explain()}")

    def _on_encryption_closed(self, is_gone: bool) -> None:
        self._end(_GONE if is_gone else "the client closed the connection")

    def _on_idle_timer(self) -> None:
        """End, or wait for the rest of the time since the last frame."""
        assert self._video is not None
        last = max(self._connected_at, self._video.last_frame_at or 0.0)
        left = last + self._config.idle_timeout_s - self._environment.clock()
        if left <= 0:
            self._end(f"no frame came for {self._config.idle_timeout_s:g} s")
        else:
            self._set_timer(left, self._on_idle_timer)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._open_channels += 1
        if self._open_channels > MAX_CHANNELS:
            channel.close()
            return
        self._channels.attach(channel.label, channel)

    def _change(self, parameters: Mapping[str, Any]) -> None:
        assert self._processor is not None
        self._processor.change(parameters)

    def _pause(self, paused: bool) -> None:
        assert self._video is not None
        self._video.paused = paused

    def _report(self, message: dict[str, Any]) -> None:
        """Send what the processor reports, with what is known about its frame."""
        if self._closing is not None and not self._is_connected:
            return
        metadata = None if self._video is None else self._video.describe(message.get("frame_id"))
        if self._video is not None and metadata:
            fps = self._video.measured_fps
            counts = self._video.counts
            message = {
                **message,
                "pts": metadata["pts"],
                "video_metadata": {**metadata, "measured_fps": fps and round(fps, 2)},
                "errors": message.get("errors", []),
                "frames": {
                    "received": counts.received,
                    "processed": counts.processed,
                    "dropped": counts.dropped,
                },
            }
        try:
            self._channels.send(message)
        except (TypeError, ValueError):
            logger.exception("session %s: a result is not JSON", self.id)


def _configure(ice_servers: Sequence[RTCIceServer]) -> RTCConfiguration:
    """Without a list of servers, aiortc asks one of Google's. With another bundle policy, it loses
    the second of two video lines behind an audio line."""
    return RTCConfiguration(list(ice_servers), bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
