"""What a model family implements; the engine knows nothing else about it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raylens.core.types import Findings, VisionRequest
from raylens.engine.transfer import upload

Pixels = NDArray[np.uint8]
"""A picture as (height, width, 3) RGB."""


@dataclass(frozen=True, eq=False)
class PictureInput:
    """A picture as the vision tower reads it, or whatever else stands in a prompt by its features.
    ``data`` is the family's own."""

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
    bidirectional_prefix_len: int = 0
    """So many of the first tokens attend to each other, not only to those before: they are read in
    one slice."""
    max_output_tokens: int | None = None
    """Places that the answer may take, where these aren't the request's ``max_tokens``."""
    limit_field: str = "max_tokens"
    """What of the request sets these."""
    greedy: bool = False
    """The answer is the most likely one, whatever the request says of sampling."""
    decode_plan: Any = None
    """What the answer is to be, in the family's own terms."""
    depends_on_tokens: bool = False
    """The :class:`TokenPolicy` of the answer asks which tokens came, not only how many: each must
    be known before the next step begins."""

    def max_total_tokens(self, max_tokens: int, max_length: int) -> int:
        """How many the prompt and an answer of up to ``max_tokens`` take together."""
        return min(
            max_length,
            len(self.token_ids)
            + (max_tokens if self.max_output_tokens is None else self.max_output_tokens),
        )

    @property
    def next_position(self) -> int:
        """The position of the first token of the answer: behind the last token's, as ``generate``
        in transformers has it. (Where a long video's time runs further than that, a forward pass by
        hand would go on behind the time.)"""
        return (
            len(self.token_ids) if self.positions is None else int(self.positions[:, -1].max()) + 1
        )


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
    """Rows of the cache that are read and written together: for each layer a tensor (2, rows,
    heads, capacity, head size), keys and then values, and how many tokens each row holds. Rows
    behind these nobody holds: there is room to compute with, for who wants batches of certain
    sizes."""

    layers: Sequence[Tensor]
    lengths: Sequence[int]
    arena: Sequence[Tensor] = ()
    """The layers with all rows that lie beside these, if these are some of them."""
    first: int = 0
    """Where the first of these stands among them."""


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What the model says behind the last token of each row."""

    logits: Tensor
    """float32 (rows, vocabulary)."""
    states: Tensor
    """The last layer's (rows, hidden), for a :class:`TokenPolicy`."""

    def rows(self, rows: Sequence[int]) -> ModelOutput:
        """Those of some rows, in order; the same object where these are all."""
        if len(rows) == len(self.logits):
            return self
        index = upload(rows, self.logits.device)
        return ModelOutput(self.logits[index], self.states[index])


@dataclass(frozen=True, eq=False)
class PrefillChunk:
    """A part of a prompt."""

    start: int
    """The first token's place in the prompt."""
    token_ids: Sequence[int]
    features: Sequence[tuple[int, Tensor]]
    """(Place in ``token_ids``, (tokens, hidden)) of the pictures' parts among them."""
    positions: NDArray[np.int64]
    """(axes, tokens)."""
    bidirectional_prefix_len: int = 0
    """The prompt's."""


class Progress(Protocol):
    """An answer so far."""

    prompt: Prompt
    output_ids: list[int]
    """As far as the host knows them: all of them if the prompt ``depends_on_tokens``, else perhaps
    one less."""
    tokens_chosen: int
    """Tokens so far, with one that the host doesn't know yet."""


NO_TOKEN = -(2**62)
"""Stands for the next token of an answer that has no room for more."""


class TokenPolicy(Protocol):
    """How a family's answers go, where they are more than text. What an answer says beside text,
    such as a place in the picture, are numbers below 0 among its ``output_ids``: the family's own,
    which ``decode`` reads like tokens."""

    def mask_logits(self, logits: Tensor, answers: Sequence[Progress]) -> Tensor:
        """Logits, float32 (answers, vocabulary), with −∞ for what can't come next; those that are
        given stay as they are."""
        ...

    def resolve_tokens(
        self, chosen: Tensor, scores: ModelOutput, answers: Sequence[Progress]
    ) -> Tensor:
        """What is next in each answer, int64 (answers,), if a sampler has chosen these tokens,
        int64 (answers,), all on the model's device; ``NO_TOKEN`` if the answer has no room for
        more. Asks the device for values only if an answer's prompt ``depends_on_tokens``."""
        ...


class Model(Protocol):
    """One loaded checkpoint. All but ``prepare`` is called from the engine's thread only."""

    tasks: frozenset[str]
    device: str
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocabulary: int
    """Width of the logits."""
    max_length: int
    """Positions that a sequence may take, prompt and answer together."""
    kv_shape: KVShape
    token_policy: TokenPolicy | None
    """None where every answer is text."""

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """The request's prompt; may be called from any thread.

        Raises ``UnsupportedTask`` and ``InvalidRequest``.
        """
        ...

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """The pictures' features, each (tokens, hidden), worked out in slices; yields between them."""
        ...

    def prefill(
        self, parts: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        """Reads parts of several prompts together, and writes the keys and values of each to its
        one row, behind the first ``part.start`` tokens; yields between slices of as much work as
        ``tokens`` tokens are. ``rows`` gives a row for each part, and is asked anew in each slice:
        the cache moves them. ModelOutput of one row a part, the last token's.
        """
        ...

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        """Reads one more token, int64 (rows,) on the model's device, in every row of ``groups``, in
        order. Doing it again changes nothing: each row's token is written behind what the row
        holds. Asks the device for no values."""
        ...

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """What a finished answer says beside its text, normalized to the processed picture, read
        tolerantly."""
        ...
