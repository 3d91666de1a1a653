"""What a model family implements; the engine knows nothing else about it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raylens.types import Location, Region, Task, VisionRequest

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""


@dataclass(frozen=True, eq=False)
class PictureInput:
    """A picture as the vision tower reads it. ``data`` is the family's own."""

    key: bytes
    """Digest of the pixels and of how they were cut: what has the same key has the same features."""
    tokens: int
    """Places that its features take in the prompt."""
    data: Any


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request as the model reads it; ``pictures`` stand in the order of their image tokens."""

    token_ids: tuple[int, ...]
    pictures: tuple[PictureInput, ...] = ()
    image_at: tuple[int, ...] = ()
    """Where each picture's first token stands."""
    positions: NDArray[np.int64] | None = None
    """Rotary positions (axes, tokens), where they don't just count."""

    @property
    def next_position(self) -> int:
        """The position of the first token of the answer: behind the last token's, as ``generate`` in transformers has
        it. (Where a long video's time runs further than that, a forward pass by hand would go on behind the time.)"""
        return len(self.token_ids) if self.positions is None else int(self.positions[:, -1].max()) + 1


@dataclass(frozen=True)
class KVShape:
    """What one token takes in the key-value cache."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: str

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class KVRows:
    """Rows of the cache that are read and written together: for each layer a tensor (2, rows, heads, capacity, head
    size), keys and then values, and how many tokens each row holds. Rows behind these nobody holds: there is room to
    compute with, for who wants batches of certain sizes."""

    layers: Sequence[Tensor]
    lengths: Sequence[int]


class Model(Protocol):
    """One loaded checkpoint. All but ``prepare`` and ``locate`` is called from the engine's thread only."""

    tasks: frozenset[str]
    device: str
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocabulary: int
    """Width of the logits."""
    max_length: int
    """Positions that a sequence may take, prompt and answer together."""
    kv_shape: KVShape

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """The request's prompt; may be called from any thread.

        Raises ``UnsupportedTask`` and ``InvalidRequest``.
        """
        ...

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """The pictures' features, each (tokens, hidden), worked out in slices; yields between them."""
        ...

    def prefill(
        self,
        token_ids: Sequence[int],
        features: Sequence[tuple[int, Tensor]],
        positions: NDArray[np.int64],
        row: KVRows,
    ) -> Tensor:
        """Reads ``token_ids`` behind what the one ``row`` holds, and writes their keys and values there.

        ``features``: (place in ``token_ids``, (tokens, hidden)) of the pictures' parts among them. ``positions``:
        (axes, tokens). Returns the next token's logits, float32 (vocabulary,).
        """
        ...

    def decode(self, token_ids: Sequence[int], positions: Sequence[int], groups: Sequence[KVRows]) -> Tensor:
        """Reads one more token in every row of ``groups``, in order; the next tokens' logits, float32 (rows,
        vocabulary). Doing it again changes nothing: each row's token is written behind what the row holds."""
        ...

    def locate(self, task: Task, text: str, prompt: Prompt) -> tuple[tuple[Region, ...], tuple[Location, ...]]:
        """What a finished answer to a detect or point says, normalized to the processed picture, parsed tolerantly."""
        ...
