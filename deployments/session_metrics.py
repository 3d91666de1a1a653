"""The number of sessions of live video, on Ray's Prometheus endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ray.serve import metrics

PERIOD_S = 5.0
"""Ray forgets a gauge that isn't set again for 20 s."""


class SessionMetrics:
    """Counts a replica's open sessions by kind. Serve adds replica and application."""

    def __init__(self) -> None:
        self._open = metrics.Gauge(
            "raylens_realtime_sessions",
            description="Open sessions of live video, and watched sources",
            tag_keys=("kind",),
        )

    async def run(self, counts: Mapping[str, Callable[[], int]]) -> None:
        """Export the numbers for as long as the replica lives."""
        while True:
            for kind, count in counts.items():
                self._open.set(count(), tags={"kind": kind})
            await asyncio.sleep(PERIOD_S)
