"""Merges the deltas of an answer, so that a stream costs no more than it needs to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from raylens.core.types import Delta, ToolCallDelta


class DeltaBuffer:
    """Holds the deltas of one answer until they are due, and returns them merged into one.

    Each delta of a stream passes through Ray, the ingress and the proxy, which takes a few
    milliseconds of CPU time, and interrupts a model that runs on the same cores. Deltas that follow
    each other faster than people read are therefore sent together. The first one and the last one
    are sent at once.
    """

    def __init__(self) -> None:
        self._held: list[Delta] = []
        self._sent_at: float | None = None

    def push(self, delta: Delta, now: float, interval: float) -> Delta | None:
        """Add a delta, and return what to send now, or None.

        ``interval``: seconds between two deltas; infinity if only the last one is sent. ``now`` is
        in seconds of a clock that all streams share.
        """
        self._held.append(delta)
        is_due = self._is_due(now, interval) and any(map(_has_content, self._held))
        if delta.finish_reason is None and not is_due:
            return None
        self._sent_at = now
        return self._take()

    def flush(self) -> Delta | None:
        """Return what is held, or None: the answer ends with an error."""
        return self._take() if any(map(_has_content, self._held)) else None

    def _take(self) -> Delta:
        held, self._held = self._held, []
        return _merge(held)

    def _is_due(self, now: float, interval: float) -> bool:
        """Return whether a multiple of ``interval`` has passed since the last delta.

        All streams thus send at the same times, which interrupts a model least.
        """
        if interval == math.inf:
            return False
        if interval == 0 or self._sent_at is None:
            return True
        return now // interval > self._sent_at // interval


def _has_content(delta: Delta) -> bool:
    return bool(delta.text or delta.logprobs or delta.tool_calls)


def _merge(deltas: Sequence[Delta]) -> Delta:
    """Return one delta with the content of all; the rest, such as the usage, is the last one's."""
    *_, last = deltas
    if len(deltas) == 1:
        return last
    timings = [delta.timings for delta in deltas if delta.timings is not None]
    return replace(
        last,
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        tool_calls=tuple(_join_calls(call for delta in deltas for call in delta.tool_calls)),
        timings=timings[-1] if timings else None,
    )


def _join_calls(pieces: Iterable[ToolCallDelta]) -> list[ToolCallDelta]:
    """Return one piece for each tool call: some clients expect no more in a chunk."""
    joined: list[ToolCallDelta] = []
    for piece in pieces:
        if joined and joined[-1].index == piece.index:
            previous = joined[-1]
            joined[-1] = replace(previous, arguments=previous.arguments + piece.arguments)
        else:
            joined.append(piece)
    return joined
