"""Boxes and points from a server that only has chat: the questions, and how to read the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from raylens.core.families import FamilySettings
from raylens.core.types import Location, Region
from raylens.engine.model import Pixels


class Grounding(Protocol):
    """What a family offers for the runtime ``openai``; see
    :attr:`raylens.core.families.Family.grounding`."""

    prompts: Mapping[str, str]
    """Questions for the tasks ``detect`` and ``point``; ``{}`` stands for the subject."""

    def resize(self, picture: Pixels, settings: FamilySettings) -> Pixels:
        """Return the picture in a size that the server will not change.

        Boxes and points come back in pixels of the picture that the server's model reads. Raises
        ``InvalidRequest``.
        """
        ...

    def regions(self, text: str, width: int, height: int) -> tuple[Region, ...]:
        """Return the boxes in an answer, normalized by the resized picture's size in pixels."""
        ...

    def locations(self, text: str, width: int, height: int) -> tuple[Location, ...]:
        """Return the points in an answer, normalized by the resized picture's size in pixels."""
        ...
