"""What a model family implements; the engine knows nothing else about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raylens.types import VisionRequest

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request as the model reads it. ``tiles`` is (tiles, channels, height, width), normalized, or None."""

    token_ids: tuple[int, ...]
    tiles: NDArray[np.float32] | None = None


class Model(Protocol):
    """One loaded checkpoint. All but ``prepare`` is called from the engine's thread only."""

    tasks: frozenset[str]
    device: str
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    max_length: int
    """Positions that a sequence may take, prompt and answer together."""

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """The request's prompt; may be called from any thread.

        Raises ``UnsupportedTask`` and ``InvalidRequest``.
        """
        ...

    def prefill(self, prompts: Sequence[Prompt], outputs: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """Reads prompts, each followed by what was generated for it before.

        Returns the next token's logits, float32 of shape (rows, vocabulary), and a cache of these rows.
        """
        ...

    def decode(self, token_ids: Sequence[int], cache: Any) -> Tensor:
        """Reads one more token a row into ``cache``; the next token's logits, float32 (rows, vocabulary)."""
        ...

    def select(self, cache: Any, rows: Sequence[int]) -> None:
        """Makes these rows, in this order, all that ``cache`` holds; a row may be named more than once."""
        ...
