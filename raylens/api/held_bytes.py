"""What a session of live video holds in memory, beside what waits for HTTP's requests."""

from __future__ import annotations

from collections.abc import Callable

from raylens.api.request_body import Place, UnfinishedBodies


class HeldBytes:
    """Counts what a session holds among the bytes of unfinished bodies.

    If these run out, and its client holds the most, ``on_loss`` is called: the session must drop
    what it holds.
    """

    def __init__(
        self, bodies: UnfinishedBodies, client: str, on_loss: Callable[[], object]
    ) -> None:
        self._bodies = bodies
        self._client = client
        self._on_loss = on_loss
        self._place: Place | None = None
        self.count = 0

    def set(self, count: int) -> None:
        self.count = max(0, count)
        if count <= 0:
            self._leave()
            return
        if self._place is None:
            self._place = self._bodies.take(self._client, self._lose)
        self._place.resize(count)

    def add(self, count: int) -> None:
        self.set(self.count + count)

    def _lose(self) -> None:
        self._place, self.count = None, 0
        self._on_loss()

    def _leave(self) -> None:
        if self._place is not None:
            self._place.leave()
            self._place = None
