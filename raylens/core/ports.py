"""Protocols between the layers, so that each layer can be tested with a fake of the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Delta,
    MediaFile,
    MemoryUsage,
    ModelInfo,
    PictureFile,
    ProcessedPicture,
    VisionRequest,
)


class VisionService(Protocol):
    """The deployment graph, as HTTP routes and jobs see it."""

    def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        """Stream the answer's deltas as they are computed. Closing the iterator aborts the work.

        Raises any of :mod:`raylens.core.errors`, before the first delta if possible.
        """
        ...

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        """Return the picture as a model would see it.

        Raises as :meth:`generate` does.
        """
        ...

    async def input_size(self, model: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size to which a model resizes a preprocessed picture of ``size``.

        Sizes are (width, height) in pixels. Raises as :meth:`model_info` does.
        """
        return size

    async def memory_usage(self) -> list[MemoryUsage]:
        """Return the memory of every replica of a model that runs in this application."""
        return []

    async def clear_memory(self) -> list[MemoryUsage]:
        """Empty the caches of every such replica, return unused memory, and return what is left.

        Answers in progress go on.
        """
        return []

    async def model_info(self, name: str) -> ModelInfo:
        """Describe a model. Raises ``ModelNotLoaded`` while none of its replicas answers."""
        ...
