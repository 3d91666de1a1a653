"""Everything that a watch writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from raylens.cli.watch import window
from raylens.cli.watch.plan import Outputs
from raylens.cli.watch.progress import Progress
from raylens.cli.watch.records import JsonLines
from raylens.cli.watch.video import Mp4File
from raylens.cli.watch.webhooks import WebhookSender
from raylens.realtime.overlay import Pixels


class Sink:
    """Writes frames, results and events to the outputs of a watch.

    ``started_at`` is the time of a live source's first frame, in seconds since the epoch. If it is
    set, events say when they happened.
    """

    def __init__(
        self,
        outputs: Outputs,
        source: str,
        progress: Progress,
        webhooks: WebhookSender | None,
        notify: Callable[[str], None],
    ) -> None:
        """Raises ``UsageError`` if a file can't be written."""
        self._source = source
        self._progress = progress
        self._webhooks = webhooks
        with ExitStack() as files:
            self._events = _open(outputs.events, "--events", files)
            self._results = _open(outputs.results, "--results", files)
            self._video = None if outputs.video is None else Mp4File(outputs.video)
            self._files = files.pop_all()
        reason = window.why_no_window() if outputs.is_shown else None
        self._is_shown = outputs.is_shown and reason is None
        if reason is not None:
            notify(f"--show: {reason}; nothing is shown")
        self.started_at: float | None = None

    @property
    def needs_drawing(self) -> bool:
        return self._video is not None or self._is_shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if self._video is not None:
                self._video.discard()
        finally:
            self._files.close()
            if self._is_shown:
                window.close()

    def add_frame(self, time_s: float) -> None:
        """Raises ``OSError``."""
        for lines in (self._events, self._results):
            if lines is not None:
                lines.begin()
        self._progress.add_frame(time_s)

    def write_frame(self, pixels: Pixels, time_s: float) -> None:
        """Add an annotated frame to the video; it may take a while. Raises ``OSError``."""
        if self._video is not None:
            self._video.write(pixels, time_s)

    def show(self, pixels: Pixels) -> None:
        """Show an annotated frame, in the main thread."""
        if self._is_shown:
            window.show(pixels)

    def add_result(self, record: Mapping[str, Any]) -> None:
        """Raises ``OSError``."""
        self._progress.add_result(record)
        if self._results is not None:
            self._results.write(record)

    def add_failure(self, record: Mapping[str, Any]) -> None:
        """Raises ``OSError``."""
        self._progress.failures += 1
        if self._results is not None:
            self._results.write(record)

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Raises ``OSError``."""
        self._progress.events += 1
        if self.started_at is not None:
            time_s = self.started_at + event.get("ended_at", event["time_s"])
            at = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
            event = {"at": at, **event}
        if self._events is not None:
            self._events.write(event)
        if self._webhooks is not None:
            self._webhooks.send(event, {"source": self._source})

    def finish(self) -> None:
        """Complete the video. Raises ``OSError``."""
        if self._video is not None:
            self._video.finish()


def _open(path: Path | None, option: str, files: ExitStack) -> JsonLines | None:
    if path is None:
        return None
    lines = JsonLines(path, option)
    files.callback(lines.close)
    return lines
