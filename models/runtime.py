"""What answers a deployment's requests: the engine in this process, or something elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from raylens.core.types import Delta, VisionRequest
from raylens.engine.metrics import Gauges
from raylens.engine.model import Pixels


class Runtime(Protocol):
    """Its methods belong to one event loop."""

    tasks: frozenset[str]
    device: str

    @property
    def failure(self) -> BaseException | None:
        """Why it will answer nothing any more, where that is so."""
        ...

    @property
    def gauges(self) -> Gauges:
        """How it stands now."""
        ...

    def check_capacity(self, request: VisionRequest) -> None:
        """Raises ``Overloaded`` where there is no place for a request's answers, and what else can
        be told at once."""
        ...

    def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        """The deltas of all ``n`` answers, until each has its finish reason; closing the iterator
        ends the work.

        Raises any of :mod:`raylens.core.errors`, before the first delta where it can.
        """
        ...
