"""What answers a deployment's requests: the engine in this process, or a remote server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from raylens.core.config import ModelConfig
from raylens.core.types import Delta, MemoryUsage, VisionRequest
from raylens.engine.metrics import Gauges
from raylens.engine.model import Pixels


class Runtime(Protocol):
    """Answers requests. All methods must be called from the same event loop."""

    tasks: frozenset[str]
    device: str
    parameters: int | None = None
    """Number of the weights' values, if it is known."""
    max_pictures: int | None = None
    """As :attr:`raylens.engine.model.Model.max_pictures`."""
    frames_as_pictures: int | None = 4
    """As :attr:`raylens.engine.model.Model.frames_as_pictures`."""

    @property
    def failure(self) -> BaseException | None:
        """The error after which it can't answer any request; None while it can."""
        ...

    @property
    def gauges(self) -> Gauges:
        """Its current load."""
        ...

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which it resizes a picture; the same, if it can't tell."""
        return width, height

    def memory_usage(self) -> MemoryUsage | None:
        """Return the memory of this process; None if the model runs elsewhere."""
        return None

    async def clear_memory(self) -> None:
        """Empty caches, and return unused memory. Answers in progress go on."""
        return

    async def configure(self, config: ModelConfig) -> None:
        """Take the settings of ``config`` that may change while it runs
        (:data:`raylens.core.live_settings.LIVE_OF_MODELS`). Answers in progress go on."""
        ...

    def check_capacity(self, request: VisionRequest) -> None:
        """Raise ``Overloaded`` if there is no room for the request's answers, or another error that
        is known without running it."""
        ...

    def generate(
        self, request: VisionRequest, pictures: Sequence[Pixels]
    ) -> AsyncGenerator[Delta, None]:
        """Yield the deltas of all ``n`` answers, until each has its finish reason.

        Closing the iterator aborts the request. Raises any of :mod:`raylens.core.errors`, before
        the first delta if possible.
        """
        ...
