"""A job that watches a camera or a folder until somebody stops it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import Field

from raylens.core.wire import Text
from raylens.jobs.job import Job
from raylens.jobs.types.base import JobContext, JobInput, JobType, LastEvent
from raylens.jobs.webhooks import format_timestamp

JOB_TYPE = "watch"
EVENT_STARTED = "event.started"
EVENT_ENDED = "event.ended"
RESULT = "result"
SOURCE_CONNECTED = "source.connected"
SOURCE_LOST = "source.lost"
EVENTS = (EVENT_STARTED, EVENT_ENDED, RESULT, SOURCE_CONNECTED, SOURCE_LOST)
"""What a watch can tell its webhook."""
PREFIX = "watch."
"""Of the types of these webhooks."""
SESSION = "session:"
END = {"type": "end"}
MAX_RECENT_EVENTS = 50
REOPEN_S = 0.5
"""Before a watch goes on elsewhere, after the process that watched has handed it over."""


class WatchInput(JobInput):
    """The stored input of a watch."""

    source: Text
    """As a client wrote it. ``session:ID`` is a WebRTC session, whose end is that of the watch."""
    fps: float = 1.0
    """Frames that the model sees in a second, at most."""
    pipeline: dict[str, Any] = Field(default_factory=dict)
    """Settings of the Moondream pipeline."""
    events: Annotated[tuple[str, ...], Field(max_length=16)] = (EVENT_STARTED, EVENT_ENDED)

    @property
    def session_id(self) -> str | None:
        return find_session(self.source)


def find_session(source: str) -> str | None:
    """Return the id of the session that a source is; None if it is none."""
    return source.removeprefix(SESSION) if source.startswith(SESSION) else None


class Watcher(Protocol):
    """Watches sources, in whatever process."""

    def watch(self, job: Job, watch_input: WatchInput) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what is seen, as JSON objects with a ``type`` (``source``, ``result``, ``error`` or
        ``event``), and ``at``, when that was, in seconds since the epoch.

        It ends if another process has to go on, and with :data:`END` if there is nothing more to
        see. Raises any of :mod:`raylens.core.errors`; those for lack of capacity if no process can
        watch at the moment.
        """
        ...


class WatchJob(JobType):
    """Output so far: the state of the source, the last result and error, and recent events."""

    name = JOB_TYPE
    input_model = WatchInput
    is_endless = True

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def last_events(self, job: Job) -> tuple[dict[str, Any] | None, list[LastEvent]]:
        record = WatchRecord.read(job.output or {})
        watch_input = WatchInput.model_validate(job.input)
        events = []
        for end in record.interruptions():
            if record.add(end) in watch_input.events:
                events.append((PREFIX + EVENT_ENDED, webhook_data(end)))
        return record.as_json(), events

    async def run(self, job_input: WatchInput, context: JobContext) -> dict[str, Any]:
        reports = _Reports(job_input, context)
        while True:
            await reports.begin()
            async with aclosing(self._watcher.watch(context.job, job_input)) as messages:
                async for message in messages:
                    if message["type"] == END["type"]:
                        return reports.output
                    await reports.add(message)
            await asyncio.sleep(REOPEN_S)


class _Reports:
    """Stores what a watch has seen, and tells the webhook of it."""

    def __init__(self, job_input: WatchInput, context: JobContext) -> None:
        self._input = job_input
        self._context = context
        self._record = WatchRecord.read(context.job.output or {})
        progress = context.job.progress
        self._count = 0 if progress is None else progress.done

    @property
    def output(self) -> dict[str, Any]:
        return self._record.as_json()

    async def begin(self) -> None:
        """Report that the watch starts, perhaps again. What had started then has ended."""
        for end in self._record.interruptions():
            await self.add(end)
        self._record.source = WatchRecord().source
        await self._report(at_once=True)

    async def add(self, message: dict[str, Any]) -> None:
        """Store a message, and tell the webhook if it is to hear of that."""
        name = self._record.add(message)
        # Only what the model has seen is progress: without any, a watch gives up in the end.
        self._count += name == RESULT
        if name in self._input.events:
            await self._tell(name, message)
        else:
            await self._report(at_once=message["type"] in ("event", "source"))

    async def _tell(self, name: str, message: Mapping[str, Any]) -> None:
        await self._context.deliver(
            PREFIX + name,
            webhook_data(message),
            self._count,
            0,
            self._record.as_json(),
            only_newest=name == RESULT,
        )

    async def _report(self, at_once: bool) -> None:
        await self._context.report(self._count, 0, self._record.as_json(), at_once)


def webhook_data(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a webhook is told of a message."""
    details = {key: value for key, value in message.items() if key not in ("type", "at")}
    if message["type"] != "event":
        details = {message["type"]: details}
    return {"at": format_timestamp(message["at"]), **details}


@dataclass
class WatchRecord:
    """What is known of a watch."""

    source: dict[str, Any] = field(default_factory=lambda: {"status": "connecting"})
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    """Why the last frame has no result; None if it has one."""
    recent_events: deque[dict[str, Any]] = field(
        default_factory=lambda: deque(maxlen=MAX_RECENT_EVENTS)
    )
    events: int = 0
    """So far."""
    started: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Events that haven't ended, by their subjects."""

    @classmethod
    def read(cls, output: Mapping[str, Any]) -> WatchRecord:
        """Return the record that a watch's output holds."""
        record = cls()
        record.source = output.get("source", record.source)
        record.result = output.get("result")
        record.error = output.get("error")
        record.recent_events.extend(output.get("recent_events", ()))
        record.events = output.get("events", 0)
        record.started = dict(output.get("started", {}))
        return record

    def add(self, message: Mapping[str, Any]) -> str:
        """Take a message, and return the name of what it says."""
        values = {name: value for name, value in message.items() if name != "type"}
        match message["type"]:
            case "source":
                self.source = values
                return f"source.{message['status']}"
            case "result":
                self.result, self.error = values, None
                return RESULT
            case "event":
                return self._add_event(values)
            case _:
                self.error = values
                return "error"

    def interruptions(self) -> Iterator[dict[str, Any]]:
        """Yield the ends of what has started, as messages: nobody has seen how it went on."""
        for started in list(self.started.values()):
            last = self.result or started["event"]
            duration_s = round(max(0.0, last.get("at", started["at"]) - started["at"]), 3)
            event = {
                **started["event"],
                "type": "ended",
                "ended_at": round(started["event"]["time_s"] + duration_s, 3),
                "duration_s": duration_s,
                "frame_id": last["frame_id"],
                "interrupted": True,
            }
            yield {"type": "event", "event": event, "at": started["at"] + duration_s}

    def _add_event(self, values: dict[str, Any]) -> str:
        event = values["event"]
        self.events += 1
        self.recent_events.append({"number": self.events, **values})
        if event["type"] == "started":
            self.started[event["subject"]] = values
            return EVENT_STARTED
        self.started.pop(event["subject"], None)
        return EVENT_ENDED

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "result": self.result,
            "error": self.error,
            "events": self.events,
            "recent_events": list(self.recent_events),
            "started": self.started,
        }
