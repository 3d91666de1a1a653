"""What the queue tells of itself while it works; the deployment passes it on to Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from raylens.jobs.job import JobState


class JobMetrics:
    """Tells nobody; a subclass does."""

    def queue(self, counts: Mapping[JobState, int]) -> None:
        """How many jobs are in each state, every second or so."""

    def ended(self, kind: str, state: JobState, seconds: float | None) -> None:
        """A job of this type ended; seconds since its first attempt began."""

    def attempt(self, kind: str, code: str) -> None:
        """An attempt ended: ``ok``, ``canceled``, or the error's code."""

    def delivery(self, outcome: str, seconds: float) -> None:
        """An attempt to deliver took so long: ``delivered``, ``again``, ``gone`` or ``refused``."""
