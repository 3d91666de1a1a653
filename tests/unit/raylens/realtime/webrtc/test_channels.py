"""Data channels: parameters, results, and clients that read too slowly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from raylens.core.errors import InvalidRequest
from raylens.realtime.webrtc.channels import (
    MAX_BUFFERED,
    MAX_MESSAGE_CHARS,
    MAX_WAITING,
    Channels,
    Message,
    Outlet,
)


class FakeChannel:
    """A data channel over a network that a test can stop."""

    def __init__(self, is_stopped: bool = False) -> None:
        self.bufferedAmountLowThreshold = 0
        self.readyState = "open"
        self.bufferedAmount = 0
        self.is_stopped = is_stopped
        self.sent: list[Any] = []
        self.listeners: dict[str, Callable[..., Any]] = {}

    def on(self, event: str, listener: Callable[..., Any]) -> None:
        self.listeners[event] = listener

    def send(self, data: str) -> None:
        if len(data) > 2 * MAX_BUFFERED:
            raise ValueError("Cannot send message of too many bytes")
        self.sent.append(json.loads(data))
        if self.is_stopped:
            self.bufferedAmount += len(data.encode())

    def resume(self) -> None:
        self.is_stopped = False
        self.bufferedAmount = 0
        self.listeners["bufferedamountlow"]()


class Settings:
    def __init__(self) -> None:
        self.changes: list[Mapping[str, Any]] = []
        self.pauses: list[bool] = []

    def change(self, parameters: Mapping[str, Any]) -> None:
        if "bad" in parameters:
            raise InvalidRequest("bad: no such setting", "bad")
        if "bug" in parameters:
            raise RuntimeError("/a/secret/path")
        self.changes.append(parameters)


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def channels(settings: Settings) -> Channels:
    return Channels(settings.change, settings.pauses.append)


@pytest.fixture
def parameters(channels: Channels) -> FakeChannel:
    channel = FakeChannel()
    channels.attach("parameters", channel)
    return channel


def test_parameters_are_applied(settings: Settings, parameters: FakeChannel) -> None:
    receive = parameters.listeners["message"]
    receive('{"question": "Who?", "paused": true}')
    receive(b'{"paused": false}')
    receive('{"paused": null, "question": "What?"}')
    assert settings.changes == [{"question": "Who?"}, {"question": "What?"}]
    assert settings.pauses == [True, False]
    assert parameters.sent == []


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ('{"bad": 1, "paused": true}', "bad"),
        ('{"paused": "yes"}', "paused"),
        ('{"paused": 1}', "paused"),
        ("{", "parameters"),
        ("[]", "parameters"),
        ("null", "parameters"),
        (b"\xff\xfe\xff", "parameters"),
        ("[" * 60_000, "parameters"),
        (" " * (MAX_MESSAGE_CHARS + 1), "parameters"),
        ('{"bug": 1}', None),
    ],
)
def test_an_error_goes_back_and_changes_nothing(
    settings: Settings, parameters: FakeChannel, message: str | bytes, field: str | None
) -> None:
    parameters.listeners["message"](message)
    (error,) = parameters.sent
    assert (error["type"], error.get("field")) == ("error", field)
    assert error["status"] == (500 if field is None else 400)
    assert error["error"]
    assert "secret" not in error["error"]
    assert settings.changes == []
    assert settings.pauses == []


def test_results_go_to_their_channel_or_else_to_that_of_the_parameters(
    channels: Channels, parameters: FakeChannel
) -> None:
    channels.send({"n": 1})
    results = FakeChannel()
    channels.attach("results", results)
    channels.send({"n": 2})
    assert (parameters.sent, results.sent) == ([{"n": 1}], [{"n": 2}])


def test_the_last_results_before_a_channel_is_open_wait_for_it(channels: Channels) -> None:
    for number in range(100):
        channels.send({"n": number})
    results = FakeChannel()
    channels.attach("results", results)
    assert [message["n"] for message in results.sent] == list(range(100 - MAX_WAITING, 100))


def test_a_channel_of_another_name_gets_nothing(channels: Channels) -> None:
    other = FakeChannel()
    channels.attach("chat", other)
    channels.send({"n": 1})
    channels.send_everywhere({"n": 2})
    assert other.sent == []


def test_news_about_the_session_goes_to_every_open_channel(
    channels: Channels, parameters: FakeChannel
) -> None:
    results, closed = FakeChannel(), FakeChannel()
    channels.attach("results", results)
    parameters.readyState = "closed"
    channels.send_everywhere({"n": 1})
    assert (results.sent, parameters.sent, closed.sent) == ([{"n": 1}], [], [])


def test_a_client_that_does_not_read_gets_the_newest_results_later() -> None:
    channel = FakeChannel(is_stopped=True)
    outlet = Outlet(channel)
    message = {"pad": "x" * 1000}
    for number in range(1000):
        outlet.send(Message.of(message | {"n": number}))
        assert channel.bufferedAmount < MAX_BUFFERED + 2000
    buffered = len(channel.sent)
    assert not outlet.is_empty
    assert outlet.dropped == 1000 - buffered - MAX_WAITING
    channel.resume()
    numbers = [message["n"] for message in channel.sent]
    assert numbers == [*range(buffered), *range(1000 - MAX_WAITING, 1000)]
    assert outlet.is_empty


def test_results_are_dropped_before_events() -> None:
    channel = FakeChannel(is_stopped=True)
    outlet = Outlet(channel)
    while outlet.is_empty or channel.bufferedAmount < MAX_BUFFERED:
        outlet.send(Message.of({"type": "result", "pad": "x" * 1000}))
    outlet.send(Message.of({"type": "recovered", "frame_id": 1}))
    for number in range(1000):
        outlet.send(Message.of({"type": "result", "n": number}))
    buffered = len(channel.sent)
    channel.resume()
    event, *results = channel.sent[buffered:]
    assert event == {"type": "recovered", "frame_id": 1}
    assert [result["n"] for result in results] == list(range(1001 - MAX_WAITING, 1000))


def test_events_without_end_are_bounded_too() -> None:
    channel = FakeChannel(is_stopped=True)
    outlet = Outlet(channel)
    for number in range(100_000):
        outlet.send(Message.of({"type": "event", "n": number}))
    channel.resume()
    assert outlet.dropped == 100_000 - len(channel.sent) > 90_000


def test_a_result_that_is_too_large_becomes_an_error() -> None:
    channel = FakeChannel()
    outlet = Outlet(channel)
    outlet.send(Message.of({"text": "x" * 3 * MAX_BUFFERED}))
    outlet.send(Message.of({"n": 1}))
    assert [message.get("type") for message in channel.sent] == ["error", None]


def test_a_channel_that_has_closed_raises_nothing(
    channels: Channels, parameters: FakeChannel
) -> None:
    parameters.readyState = "closed"
    for _ in range(100):
        channels.send({"n": 1})
    assert parameters.sent == []
    assert channels.are_empty
