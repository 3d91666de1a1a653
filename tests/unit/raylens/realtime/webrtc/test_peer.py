"""Sessions with aiortc as the client, over loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aioice.ice
import pytest
from aiortc import RTCIceServer

from raylens.core.errors import Conflict, InvalidRequest, Overloaded
from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.frames import Report
from raylens.realtime.webrtc import addresses
from raylens.realtime.webrtc.backlog import DecoderQueue
from raylens.realtime.webrtc.peer import Environment, Peer, Status
from raylens.realtime.webrtc.remote_candidates import MAX_CANDIDATES
from testing.webrtc_client import (
    LOOPBACK,
    Client,
    is_marked,
    read_number,
    show_until,
    to_rgb,
    wait_until,
)
from tests.unit.raylens.realtime.webrtc.processors import Failing, Gated, Marker

OpenMarker = Callable[[Mapping[str, Any], Report], Any]


class Server:
    """One peer, and its processor."""

    def __init__(
        self,
        open_processor: OpenMarker = Marker,
        ice_servers: Sequence[RTCIceServer] = (),
        **settings: Any,
    ) -> None:
        self.processors: list[Any] = []

        def open_it(parameters: Mapping[str, Any], report: Report) -> Any:
            self.processors.append(open_processor(parameters, report))
            return self.processors[-1]

        self.time = 1000.0
        environment = Environment(WebRtcConfig(**settings), LOOPBACK, open_it, lambda: self.time)
        self.ended: list[Peer] = []
        self.gathering_at_the_end = ""
        self.peer = Peer("p-1", "me", environment, ice_servers, self._on_end)

    def _on_end(self, peer: Peer) -> None:
        self.ended.append(peer)
        self.gathering_at_the_end = peer._connection.iceGatheringState

    @property
    def processor(self) -> Any:
        return self.processors[0]

    @property
    def line(self) -> Any:
        """aiortc's transceiver."""
        (line,) = self.peer._connection.getTransceivers()
        return line

    @property
    def track_queue(self) -> asyncio.Queue[Any]:
        """aiortc's own queue of decoded frames, which has no bound."""
        queue: asyncio.Queue[Any] = self.line.receiver.track._queue
        return queue

    async def wait_received(self, frames: int) -> None:
        await wait_until(lambda: self.peer.state.frames.received == frames)

    async def connect(self, client: Client, **parameters: Any) -> None:
        await client.accept(await self.peer.answer(await client.offer(), "offer", parameters))
        await client.wait_connected()
        await wait_until(lambda: self.peer.state.status is Status.CONNECTED)


@asynccontextmanager
async def closing(server: Server, *clients: Client) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await server.peer.close("the test is over")
        for client in clients:
            await client.close()


@pytest.mark.parametrize("codec", ["VP8", "H264"])
@pytest.mark.parametrize(
    "layout", [("sendrecv",), ("sendonly", "recvonly"), ("recvonly", "sendonly")]
)
async def test_annotated_frames_come_back(codec: str, layout: tuple[str, ...]) -> None:
    server, client = Server(), Client(layout, codec=codec)
    async with closing(server, client):
        await server.connect(client, feature="detect")
        await show_until(client, lambda: len(client.frames) >= 5)
        frames = [to_rgb(frame) for frame in client.frames]
        assert all(map(is_marked, frames))
        numbers = [read_number(frame) for frame in frames]
        assert numbers == sorted(set(numbers))
        assert set(numbers) <= set(server.processor.numbers)
        assert server.processor.parameters == {"feature": "detect"}
        # Times are those of the frames that are shown: 3000 ticks for each number.
        first = client.frames[0].pts
        times = [(frame.pts or 0) - (first or 0) for frame in client.frames]
        expected = [3000 * (number - numbers[0]) for number in numbers]
        assert times == pytest.approx(expected, abs=8)


async def test_results_name_their_frames() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: len(client.received("results")) >= 5)
        for result in client.received("results"):
            metadata = result["video_metadata"]
            assert metadata["frame_id"] == result["frame_id"]
            assert metadata["pts"] == result["pts"]
            assert result["pts"] == pytest.approx(3000 * result["number"], abs=3)
            assert metadata["pts"] * metadata["time_base"] == pytest.approx(result["time_s"])
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", metadata["received_at"])
            assert result["errors"] == []
            assert result["frames"]["received"] >= result["frame_id"]
        assert set(metadata) == {"frame_id", "received_at", "pts", "time_base", "measured_fps"}


async def test_with_the_parameters_channel_alone_results_go_there() -> None:
    server, client = Server(), Client(channels=["parameters"])
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: client.received("parameters"))
        assert "video_metadata" in client.received("parameters")[0]


async def test_parameters_change_the_processor_while_it_runs() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client, question="Who?")
        client.send({"question": "What?"})
        await wait_until(lambda: server.processor.parameters == {"question": "What?"})
        client.send({"unknown": 1, "question": "Why?"})
        client.send("{")
        await wait_until(lambda: len(client.received("parameters", "error")) == 2)
        assert [error["field"] for error in client.received("parameters")] == [
            "unknown",
            "parameters",
        ]
        assert server.processor.parameters == {"question": "What?"}
        assert server.peer.state.status is Status.CONNECTED


async def test_paused_stops_the_processing_and_goes_on() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client, paused=True)
        await show_until(client, lambda: server.peer.state.frames.received >= 5)
        assert server.processor.seen == []
        client.send({"paused": False})
        await show_until(client, lambda: len(client.frames) >= 2, first=100)
        assert server.processor.parameters == {}


async def test_a_slow_processor_gets_the_newest_frame() -> None:
    server, client = Server(Gated), Client()
    async with closing(server, client):
        await server.connect(client)
        client.camera.show_numbers(range(2))
        await server.processor.wait_for(0)  # the jitter buffer keeps the last one
        for shown in range(2, 152, 30):
            client.camera.show_numbers(range(shown, shown + 30))
            await server.wait_received(shown + 29)
            assert server.track_queue.empty()
            server.processor.gate.release()
            await server.processor.wait_for(shown + 28)
        frames = server.peer.state.frames
        assert frames.dropped == frames.received - 6


async def test_the_decoders_backlog_is_bounded() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: client.frames)
        assert isinstance(server.line.receiver._RTCRtpReceiver__decoder_queue, DecoderQueue)


async def test_the_size_may_change_and_may_be_odd() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client)
        for size in ((320, 240), (161, 121), (640, 360)):

            def has_come(size: tuple[int, int] = size) -> bool:
                client.camera.show_numbers([7], *size)
                return any((frame.width, frame.height) == size for frame in client.frames)

            await wait_until(has_come)
        assert all(is_marked(to_rgb(frame)) for frame in client.frames)
        assert {read_number(to_rgb(frame)) for frame in client.frames} == {7}


async def test_a_failing_processor_is_reported_and_the_video_goes_on() -> None:
    server, client = Server(Failing), Client()
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: {0, 1} <= {n % 2 for n in client.numbers()})
        await wait_until(lambda: client.received("results", "error"))
        error = client.received("results", "error")[0]
        assert (error["error"], error["code"]) == ("an internal error", "internal_error")
        for frame in map(to_rgb, client.frames):
            assert is_marked(frame) == (read_number(frame) % 2 == 0)


@pytest.mark.parametrize("direction", ["sendrecv", "recvonly"])
@pytest.mark.parametrize("layout", [("sendrecv",), ("sendonly", "recvonly")])
async def test_audio_is_refused_without_harm(direction: str, layout: tuple[str, ...]) -> None:
    server, client = Server(), Client(layout, audio=direction)
    async with closing(server, client):
        await server.connect(client)
        await client.wait_annotated()
        audio, *video = client.connection.getTransceivers()
        assert audio.currentDirection == "inactive"
        assert tuple(line.currentDirection for line in video) == layout


async def test_video_need_not_come_back() -> None:
    server, client = Server(), Client(layout=["sendonly"])
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: len(client.received("results")) >= 3)
        assert client.frames == []


async def test_the_bit_rate_is_ours() -> None:
    server, client = Server(max_bitrate=12_000_000), Client()
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: client.frames)
        encoder = server.line.sender._RTCRtpSender__encoder
        limit = 12_000_000 / 12  # 320×240 of 1280×720
        # A hint for browsers built on Chromium, in kbit/s.
        assert "x-google-start-bitrate=6000" in client.connection.remoteDescription.sdp
        assert encoder.codec.bit_rate == pytest.approx(limit / 2)
        estimator = server.line.receiver._RTCRtpReceiver__remote_bitrate_estimator
        assert estimator.rate_control.current_bitrate >= 12_000_000
        encoder.target_bitrate = 100_000_000
        assert encoder.target_bitrate == limit


async def test_the_client_is_told_why_the_session_ends() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client)
        await server.peer.close("the server is updated")
        event = {"type": "stream_stopped", "error_message": "the server is updated"}
        await wait_until(lambda: event in client.messages["parameters"])
        await wait_until(lambda: event in client.messages["results"])
        assert server.processor.is_closed
        assert server.peer.state.reason == "the server is updated"
        assert server.ended == [server.peer]


async def test_the_processors_last_words_come_before_the_end() -> None:
    class Talking(Marker):
        async def close(self) -> None:
            self._report({"type": "ended", "subject": "person"})

    server, client = Server(Talking), Client()
    async with closing(server, client):
        await server.connect(client)
        await server.peer.close("bye")
        await client.wait_received("results")
        types = [message.get("type") for message in client.received("results")]
        assert types == ["ended", "stream_stopped"]


async def test_a_processor_that_cannot_be_closed_keeps_nothing_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(Marker):
        async def close(self) -> None:
            raise RuntimeError("no")

    server, client = Server(Stubborn), Client()
    async with closing(server, client):
        await server.connect(client)
        await server.peer.close("bye")
        assert server.ended == [server.peer]
        assert "its Stubborn could not be closed" in caplog.text
        await wait_until(lambda: client.connection.connectionState == "closed")


async def test_a_client_that_closes_ends_the_session() -> None:
    server, client = Server(), Client()
    await server.connect(client)
    await client.close()
    state = await server.peer.wait_ended()
    assert state.reason in ("the client's video ended", "the client closed the connection")
    assert server.processor.is_closed


async def test_a_client_that_vanishes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.01)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 1)
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client)
        await show_until(client, lambda: client.frames)
        client.vanish()
        state = await server.peer.wait_ended()
        assert state.reason == "the client has gone: it answers no more"
        assert server.processor.is_closed


async def test_a_session_without_frames_ends() -> None:
    server, client = Server(idle_timeout_s=0.05), Client()
    async with closing(server, client):
        await server.connect(client)
        for number in range(20):
            server.time += 0.02
            client.camera.show_numbers([number])
            await server.wait_received(number)  # the jitter buffer keeps the last one
        assert server.peer.state.status is Status.CONNECTED

        def has_ended() -> bool:
            server.time += 0.01
            return bool(server.ended)

        await wait_until(has_ended)
        assert server.peer.state.reason == "no frame came for 0.05 s"


async def test_without_a_connection_the_session_ends_and_says_why() -> None:
    server, client = Server(connect_timeout_s=0.2), Client()
    async with closing(server, client):
        offer = await client.offer()
        hidden = "a=candidate:1 1 udp 99 some-name.local 5000 typ host\r\n"
        silent = "a=candidate:2 1 udp 98 127.0.0.1 9 typ host\r\n"
        offer = re.sub("a=candidate:.*\r\n", "", offer)
        offer = re.sub("(a=mid:0\r\n)", rf"\1{hidden}{silent}", offer)
        answer = await server.peer.answer(offer, "offer", {})
        port = re.findall(r"127\.0\.0\.1 (\d+) typ host", answer)[0]
        state = await server.peer.wait_ended()
        assert state.status is Status.ENDED
        assert re.fullmatch(
            r"no connection within 0\.2 s: no network path \(ICE\): this server offered"
            rf" 127\.0\.0\.1:{port} host; the client offered 127\.0\.0\.1 port 9 \(udp host\), and"
            r" these, which were ignored: some-name\.local port 5000 \(udp host\); pairs:"
            rf" 127\.0\.0\.1:{port} to 127\.0\.0\.1:9: no answer yet; the server listens on"
            r" loopback only, .* set webrtc\.addresses",
            state.reason,
        )


async def test_a_wrong_fingerprint_is_an_error_of_the_encryption() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        offer = await client.offer()
        wrong = re.sub(
            r"(a=fingerprint:sha-\d+ )(\S\S)",
            lambda match: match[1] + ("00" if match[2] != "00" else "11"),
            offer,
        )
        await client.accept(await server.peer.answer(wrong, "offer", {}))
        state = await server.peer.wait_ended()
        assert "the encryption (DTLS) failed" in state.reason


async def test_candidates_may_come_after_the_offer() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        offer = await client.offer()
        lines = re.findall("a=(candidate:.*)\r\n", offer)
        bare = re.sub("a=(candidate:.*|end-of-candidates)\r\n", "", offer)
        answer = await server.peer.answer(bare, "offer", {})
        # The client sends nothing on its own, so that the server must use its candidates.
        silent = re.sub("a=candidate:.*\r\n", "", answer).replace("a=end-of-candidates\r\n", "")
        await client.accept(silent)
        await server.peer.add_candidates(
            [
                {"candidate": "candidate:1 1 udp 9 x.local 5000 typ host", "sdpMid": "0"},
                {"candidate": lines[0], "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "u"},
                {"candidate": "", "sdpMid": "0"},
                None,
            ]
        )
        await client.wait_connected()


async def test_a_client_is_found_whose_candidates_are_all_hidden() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        offer = await client.offer()
        hidden = offer.replace("127.0.0.1", "c0ffee00-0001.local").replace(
            "c=IN IP4 c0ffee00-0001.local", "c=IN IP4 0.0.0.0"
        )
        assert "a=end-of-candidates" in hidden
        await client.accept(await server.peer.answer(hidden, "offer", {}))
        await client.wait_connected()


CANDIDATE = "candidate:1 1 udp 9 10.0.0.1 5000 typ host"


@pytest.mark.parametrize(
    ("entries", "field"),
    [
        ([None, {"candidate": "nonsense", "sdpMid": "0"}], "candidates.1.candidate"),
        ([{"candidate": CANDIDATE, "sdpMid": "video"}], "candidates.0.sdpMid"),
        ([{"candidate": CANDIDATE, "sdpMLineIndex": 9}], "candidates.0.sdpMLineIndex"),
        ((MAX_CANDIDATES + 1) * [None], "candidates"),
    ],
)
async def test_bad_candidates_are_refused_by_name(entries: list[Any], field: str) -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.peer.answer(await client.offer(), "offer", {})
        with pytest.raises(InvalidRequest) as caught:
            await server.peer.add_candidates(entries)
        assert caught.value.field == field
        assert server.peer.state.status is Status.CONNECTING


async def test_a_second_offer_is_a_conflict() -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        await server.connect(client)
        with pytest.raises(Conflict, match="has been negotiated"):
            await server.peer.answer(await client.offer(), "offer", {})
        assert server.peer.state.status is Status.CONNECTED


@pytest.mark.parametrize(
    ("parameters", "field"), [({"question": ""}, "question"), ({"paused": "yes"}, "paused")]
)
async def test_bad_first_parameters_refuse_the_offer(
    parameters: dict[str, Any], field: str
) -> None:
    server, client = Server(), Client()
    async with closing(server, client):
        with pytest.raises(InvalidRequest) as caught:
            await server.peer.answer(await client.offer(), "offer", parameters)
        assert caught.value.field == field
        assert server.peer.state.status is Status.ENDED
        with pytest.raises(Conflict):
            await server.peer.add_candidates([])


async def test_what_aiortc_refuses_is_an_invalid_request() -> None:
    server, client = Server(), Client(audio="recvonly")
    async with closing(server, client):
        offer = re.sub(
            "a=rtpmap:(.*) (opus|G722|PCM.)/", r"a=rtpmap:\1 unknown/", await client.offer()
        )
        with pytest.raises(InvalidRequest, match="audio") as caught:
            await server.peer.answer(offer, "offer", {})
        assert caught.value.field == "sdp"
        assert server.processor.is_closed


async def test_an_address_of_another_machine_refuses_the_offer() -> None:
    server, client = Server(), Client()
    server.peer._environment = Environment(
        WebRtcConfig(), ("203.0.113.1",), server.peer._environment.open_processor
    )
    async with closing(server, client):
        with pytest.raises(Overloaded, match=r"webrtc\.addresses: can't listen on 203\.0\.113\.1"):
            await server.peer.answer(await client.offer(), "offer", {})


async def test_the_public_address_is_announced() -> None:
    server, client = Server(public_address="203.0.113.7"), Client()
    async with closing(server, client):
        answer = await server.peer.answer(await client.offer(), "offer", {})
        hosts = re.findall(r"a=candidate:.* (\S+) \d+ typ host", answer)
        assert set(hosts) == {"203.0.113.7"}
        # The client can't send there; but the server sends to the client.
        await client.accept(answer)
        await client.wait_connected()


async def test_nothing_is_closed_under_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TURN server's answer that came after the end would leave its connection open."""
    monkeypatch.setattr(addresses, "GATHER_TIMEOUT_S", 1)
    connected = asyncio.Event()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        while await reader.read(1024):
            pass
        writer.close()

    silent = await asyncio.start_server(read, "127.0.0.1", 0)
    url = f"turn:127.0.0.1:{silent.sockets[0].getsockname()[1]}?transport=tcp"
    server, client = Server(ice_servers=(RTCIceServer(url, "me", "secret"),)), Client()
    async with silent, closing(server, client):
        offer = await client.offer()
        answering = asyncio.create_task(server.peer.answer(offer, "offer", {}))
        await connected.wait()
        await server.peer.close("draining")
        assert server.gathering_at_the_end == "complete"
        with pytest.raises(Conflict, match="draining"):
            await answering


async def test_it_can_be_closed_at_any_time() -> None:
    for turns in range(12):
        server, client = Server(), Client()
        async with closing(server, client):
            answering = asyncio.create_task(server.peer.answer(await client.offer(), "offer", {}))
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.peer.close("draining")
            (result,) = await asyncio.gather(answering, return_exceptions=True)
            assert server.peer.state.reason == "draining"
            assert isinstance(result, str) or "draining" in str(result)
