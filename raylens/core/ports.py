"""What the layers ask of each other, so that each can be tested with a fake of the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from raylens.core.recipe import Recipe
from raylens.core.types import Delta, ModelInfo, PictureFile, ProcessedPicture, VisionRequest


class VisionService(Protocol):
    """The graph as the HTTP layer sees it."""

    def generate(
        self, request: VisionRequest, pictures: Sequence[PictureFile]
    ) -> AsyncGenerator[Delta, None]:
        """The answer's deltas as they are computed; closing the iterator stops the work.

        Raises any of :mod:`raylens.core.errors`, before the first delta where it can.
        """
        ...

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedPicture:
        """The picture that a model would see. ``identity`` is the request's id. Raises as
        :meth:`generate` does."""
        ...

    async def model_info(self, name: str) -> ModelInfo:
        """What a model is. Raises ``ModelNotLoaded`` while no replica of it answers."""
        ...
