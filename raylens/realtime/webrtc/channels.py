"""A session's data channels: parameters from the client, results to it."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
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
"""Messages that wait beside these. The oldest are dropped."""
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


class Outlet:
    """Messages to one data channel. They never pile up: if the client doesn't read, old ones are
    dropped."""

    def __init__(self, channel: DataChannel) -> None:
        self._channel = channel
        self._waiting: deque[str] = deque()
        self.dropped = 0
        channel.bufferedAmountLowThreshold = LOW_BUFFERED
        channel.on("bufferedamountlow", self._flush)

    @property
    def is_open(self) -> bool:
        return self._channel.readyState == "open"

    @property
    def is_empty(self) -> bool:
        """Whether everything has been handed to the network."""
        return not self._waiting and self._channel.bufferedAmount == 0

    def send(self, text: str) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(text)
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self.is_open and self._channel.bufferedAmount < MAX_BUFFERED:
            text = self._waiting.popleft()
            try:
                self._channel.send(text)
            except ValueError as error:  # larger than what the client takes
                self.dropped += 1
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
        self._early: deque[str] = deque(maxlen=MAX_WAITING)

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
            outlet.send(self._early.popleft())

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a result or an event."""
        text = _to_text(message)
        outlet = self._outlets.get(RESULTS) or self._outlets.get(PARAMETERS)
        if outlet is None:
            self._early.append(text)
        else:
            outlet.send(text)

    def send_everywhere(self, message: Mapping[str, Any]) -> None:
        """Send an event about the session itself to every channel that is open."""
        for outlet in self._outlets.values():
            if outlet.is_open:
                outlet.send(_to_text(message))

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
            outlet.send(_to_text(error_message(error)))
        except Exception:
            logger.exception("parameters could not be applied")
            outlet.send(_to_text(error_message(INTERNAL_ERROR)))


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
