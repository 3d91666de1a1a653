"""What a family provides to verify a checkpoint: the model, and a reference to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from models.options import LoadOptions
from models.verify.questions import Question
from raylens.engine.model import Model
from raylens.engine.sequence import GenerationSequence


class Unverifiable(Exception):
    """The checkpoint can't be loaded strictly, or its family is unknown."""


@dataclass(frozen=True)
class Answer:
    """Our answer: the finished sequence, and its text or findings in normalized form."""

    sequence: GenerationSequence
    text: str


@dataclass(frozen=True)
class Comparison:
    """The reference's answer, and whether ours is the same; None if there is no reference."""

    text: str
    is_same: bool | None


NO_REFERENCE = Comparison("", None)


@dataclass(frozen=True)
class VerifiableModel:
    model: Model
    compare: Callable[[Question, Answer], Comparison]


class Verifier(Protocol):
    """The function that :attr:`raylens.core.families.Family.verifier` names."""

    def __call__(
        self, checkpoint: str, options: LoadOptions, reference: Path | None
    ) -> VerifiableModel:
        """Load a checkpoint (a hub id or a folder) strictly.

        ``reference`` is a folder with a reference implementation, for families that need one.
        Raises ``Unverifiable``.
        """
        ...
