"""A session's data channels: parameters from the client, results to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from raylens.core.errors import InvalidRequest, PayloadTooLarge, RaylensError
from raylens.realtime.messages import INTERNAL_ERROR, error_message

logger = logging.getLogger(__name__)

PARAMETERS = "parameters"
RESULTS = "results"
MAX_BUFFERED = 64 * 1024
"""Bytes that aiortc may hold for a client that reads too slowly."""
LOW_BUFFERED = 16 * 1024
MAX_WAITING = 16
"""Messages that wait beside these. The oldest result is dropped first."""
MAX_MESSAGE_CHARS = 64 * 1024
"""Of a message from the client."""


class DataChannel(Protocol):
    """The part of aiortc's RTCDataChannel that an outlet needs."""

    bufferedAmountLowThreshold: int

    @property
    def readyState(self) -> str: ...
    @property
    def bufferedAmount(self) -> int: ...
    def send(self, data: str) -> None: ...
    def on(self, event: str, listener: Callable[..., Any]) -> Any: ...


@dataclass(frozen=True)
class Message:
    text: str
    is_result: bool = False
    """A newer result makes up for it. Nothing makes up for an event or an error."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Message:
        """Raises ``TypeError`` or ``ValueError`` if the fields aren't JSON."""
        return cls(_to_text(fields), fields.get("type") == "result")


class Backlog:
    """The last messages that wait for a client, in order."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message) -> None:
        if len(self._messages) >= MAX_WAITING:
            results = (i for i, waiting in enumerate(self._messages) if waiting.is_result)
            del self._messages[next(results, 0)]
            self.dropped += 1
        self._messages.append(message)

    def take(self) -> Message:
        return self._messages.pop(0)


class Outlet:
    """Messages to one data channel. They never pile up: if the client doesn't read, old ones are
    dropped, results first."""

    def __init__(self, channel: DataChannel) -> None:
        self._channel = channel
        self._waiting = Backlog()
        self._too_large = 0
        channel.bufferedAmountLowThreshold = LOW_BUFFERED
        channel.on("bufferedamountlow", self._flush)

    @property
    def dropped(self) -> int:
        """Messages that the client hasn't got."""
        return self._waiting.dropped + self._too_large

    @property
    def is_open(self) -> bool:
        return self._channel.readyState == "open"

    @property
    def is_empty(self) -> bool:
        """Whether everything has been handed to the network."""
        return not self._waiting and self._channel.bufferedAmount == 0

    def send(self, message: Message) -> None:
        self._waiting.put(message)
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self.is_open and self._channel.bufferedAmount < MAX_BUFFERED:
            message = self._waiting.take()
            try:
                self._channel.send(message.text)
            except ValueError as error:  # larger than what the client takes
                self._too_large += 1
                self._channel.send(_to_text(error_message(PayloadTooLarge(str(error)))))


class Channels:
    """The data channels of one session, which the client opens.

    ``change`` gets parameters, and ``pause`` the value of ``paused``. Results go to the channel
    ``results``, or to ``parameters`` if there is no other; until one is open, the last few wait.
    """

    def __init__(
        self, change: Callable[[Mapping[str, Any]], None], pause: Callable[[bool], None]
    ) -> None:
        self._change = change
        self._pause = pause
        self._outlets: dict[str, Outlet] = {}
        self._early = Backlog()

    @property
    def dropped(self) -> int:
        """Messages that the client was too slow for."""
        return sum(outlet.dropped for outlet in self._outlets.values())

    @property
    def are_empty(self) -> bool:
        """Whether everything has been handed to the network, or can't be."""
        return all(outlet.is_empty or not outlet.is_open for outlet in self._outlets.values())

    def attach(self, label: str, channel: DataChannel) -> None:
        """Use a channel that the client has opened. One with another name is left alone."""
        if label not in (PARAMETERS, RESULTS):
            logger.debug("a data channel of another name: %.100s", label)
            return
        outlet = self._outlets[label] = Outlet(channel)
        if label == PARAMETERS:
            channel.on("message", lambda message: self.receive(message, outlet))
        while self._early:
            outlet.send(self._early.take())

    def send(self, fields: Mapping[str, Any]) -> None:
        """Send a result or an event."""
        message = Message.of(fields)
        outlet = self._outlets.get(RESULTS) or self._outlets.get(PARAMETERS)
        if outlet is None:
            self._early.put(message)
        else:
            outlet.send(message)

    def send_everywhere(self, fields: Mapping[str, Any]) -> None:
        """Send an event about the session itself to every channel that is open."""
        for outlet in self._outlets.values():
            if outlet.is_open:
                outlet.send(Message.of(fields))

    def receive(self, message: str | bytes, outlet: Outlet) -> None:
        """Apply a message with parameters. Errors go back to where it came from."""
        try:
            parameters = parse_parameters(message)
            paused = take_paused(parameters)
            if parameters:
                self._change(parameters)
            if paused is not None:
                self._pause(paused)
        except RaylensError as error:
            outlet.send(Message.of(error_message(error)))
        except Exception:
            logger.exception("parameters could not be applied")
            outlet.send(Message.of(error_message(INTERNAL_ERROR)))


def parse_parameters(message: str | bytes) -> dict[str, Any]:
    """Parse a message from the client. Raises ``InvalidRequest``."""
    if len(message) > MAX_MESSAGE_CHARS:
        raise InvalidRequest(
            f"parameters: {len(message)} characters; the limit is {MAX_MESSAGE_CHARS}",
            PARAMETERS,
            MAX_MESSAGE_CHARS,
        )
    try:
        parameters = json.loads(message)
    except (ValueError, RecursionError):
        raise InvalidRequest("parameters: not JSON", PARAMETERS) from None
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters: expected an object", PARAMETERS)
    return parameters


def take_paused(parameters: dict[str, Any]) -> bool | None:
    """Remove ``paused`` and return it; None if it isn't there. Raises ``InvalidRequest``."""
    paused = parameters.pop("paused", None)
    if paused is not None and not isinstance(paused, bool):
        raise InvalidRequest("paused: expected true or false", "paused")
    return paused


def _to_text(message: Mapping[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
