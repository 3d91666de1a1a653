"""The protocol that a model family implements. The engine knows nothing else about a family."""

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
"""A picture's pixels, RGB, (height, width, 3)."""


@dataclass(frozen=True, eq=False)
class PictureInput:
    """Input of the vision encoder for one picture.

    A family may also use it for other input that enters a prompt as features instead of tokens.
    """

    key: bytes
    """Digest of the pixels and of how they are cropped. Equal keys mean equal features."""
    num_tokens: int
    """Number of image tokens that the features replace in the prompt."""
    data: Any
    """The encoder's input, in the family's own format."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request as the model reads it."""

    token_ids: tuple[int, ...]
    pictures: tuple[PictureInput, ...] = ()
    """In the order of their image tokens."""
    image_starts: tuple[int, ...] = ()
    """For each picture, the index of its first image token."""
    positions: NDArray[np.int64] | None = None
    """Rotary positions (axes, tokens). None means 0, 1, 2, …"""
    bidirectional_prefix_len: int = 0
    """Number of leading tokens that attend to each other, without a causal mask. They are
    prefilled in one chunk."""
    max_output_tokens: int | None = None
    """Maximum number of tokens in the answer. None means the request's ``max_tokens``."""
    limit_field: str = "max_tokens"
    """The request's field that sets this maximum, for error messages."""
    greedy: bool = False
    """Whether the answer is decoded greedily, whatever the request's sampling parameters are."""
    decode_plan: Any = None
    """The structure of the answer, in the family's own format."""
    depends_on_tokens: bool = False
    """Whether the :class:`TokenPolicy` needs the answer's token ids, and not only their number.
    If so, each token must reach the host before the next decode step begins."""

    def max_total_tokens(self, max_tokens: int, max_length: int) -> int:
        """Return how many tokens the prompt and its longest answer take together.

        The answer has at most ``max_tokens`` tokens, unless ``max_output_tokens`` is set. The sum
        is at most ``max_length``.
        """
        max_output = max_tokens if self.max_output_tokens is None else self.max_output_tokens
        return min(max_length, len(self.token_ids) + max_output)

    @property
    def next_position(self) -> int:
        """Rotary position of the answer's first token: the last prompt token's plus 1.

        transformers' ``generate`` does the same. A plain forward pass in transformers would
        continue after the largest position on any axis. That is more if the time axis of a long
        video extends beyond the last token.
        """
        if self.positions is None:
            return len(self.token_ids)
        return int(self.positions[:, -1].max()) + 1


@dataclass(frozen=True)
class KVShape:
    """Shape, type and device of the keys and values of one token."""

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
    """KV cache rows that are read and written together.

    The tensors may have more rows than ``lengths`` has entries. The extra rows belong to no
    sequence. A model may compute with them to round a batch up to a fixed size.
    """

    layers: Sequence[Tensor]
    """For each layer (2, rows, heads, capacity, head size): keys, then values."""
    lengths: Sequence[int]
    """Number of tokens in each row."""
    arena_layers: Sequence[Tensor] = ()
    """For each layer, all rows of the arena. Set if ``layers`` are views of some of its rows."""
    first_row: int = 0
    """Index in ``arena_layers`` of the first of these rows."""


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """Logits and hidden states at the last token of each row."""

    logits: Tensor
    """float32 (rows, vocabulary)."""
    hidden_states: Tensor
    """Hidden states of the last layer (rows, hidden), for a :class:`TokenPolicy`."""

    def select(self, rows: Sequence[int]) -> ModelOutput:
        """Return the output of some rows, given in ascending order; ``self`` if these are all."""
        if len(rows) == len(self.logits):
            return self
        index = upload(rows, self.logits.device)
        return ModelOutput(self.logits[index], self.hidden_states[index])


@dataclass(frozen=True, eq=False)
class PrefillChunk:
    """Consecutive tokens of one prompt, to be prefilled."""

    start: int
    """Index in the prompt of the first token."""
    token_ids: Sequence[int]
    features: Sequence[tuple[int, Tensor]]
    """For each picture with image tokens in this chunk: the index in ``token_ids`` of the first
    of them, and their features (tokens, hidden)."""
    positions: NDArray[np.int64]
    """Rotary positions (axes, tokens)."""
    bidirectional_prefix_len: int = 0
    """The prompt's, counted from the first token of the prompt."""


class AnswerProgress(Protocol):
    """An answer so far."""

    prompt: Prompt
    output_ids: list[int]
    """Token ids that have reached the host. If the prompt ``depends_on_tokens``, these are all
    token ids; otherwise the newest one may be missing."""
    tokens_chosen: int
    """Number of tokens so far, including one that has not reached the host."""


NO_TOKEN = -(2**62)
"""Placeholder for the next token of an answer that has no room for more."""


class TokenPolicy(Protocol):
    """Controls the tokens of a family whose answers are more than text.

    Such a family represents coordinates and the like by negative numbers of its own among an
    answer's ``output_ids``. Its ``decode`` reads them like token ids.
    """

    def mask_logits(self, logits: Tensor, answers: Sequence[AnswerProgress]) -> Tensor:
        """Mask the logits of tokens that cannot come next.

        Takes and returns float32 (answers, vocabulary); −∞ masks a token. Does not modify its
        argument.
        """
        ...

    def resolve_tokens(
        self, chosen: Tensor, output: ModelOutput, answers: Sequence[AnswerProgress]
    ) -> Tensor:
        """Return the next token id of each answer, int64 (answers,).

        ``chosen``, int64 (answers,), holds the sampled tokens. All tensors are on the model's
        device. ``NO_TOKEN`` means that the answer has no room for more. Synchronizes with the
        device only if the prompt of an answer ``depends_on_tokens``.
        """
        ...


class Model(Protocol):
    """One loaded checkpoint. All methods except ``prepare`` run on the engine's thread."""

    tasks: frozenset[str]
    device: str
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocab_size: int
    """Width of the logits."""
    max_length: int
    """Maximum number of tokens in a sequence, prompt and answer together."""
    kv_shape: KVShape
    token_policy: TokenPolicy | None
    """None if every answer is text."""

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Return the request's prompt. Can be called from any thread.

        Raises ``UnsupportedTask`` and ``InvalidRequest``.
        """
        ...

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Return the features of each picture (tokens, hidden). Yield between slices of work."""
        ...

    def prefill(
        self, chunks: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        """Prefill chunks of several prompts together.

        Writes the keys and values of each chunk to its row, after the first ``chunk.start``
        tokens. Yields between slices. A slice is about as much work as ``tokens`` tokens.

        ``rows`` returns the row of each chunk, as :class:`KVRows` of one row. Call it again in each
        slice, because the cache moves rows between slices.

        Returns the output at the last token of each chunk.
        """
        ...

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        """Decode one token in every row of ``groups``, in order.

        ``token_ids``, int64 (rows,), are on the model's device. The keys and values of a token are
        written after the tokens that its row holds, so repeating the call has no further effect.
        Does not synchronize with the device.
        """
        ...

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """Return what a finished answer contains besides text.

        Coordinates are normalized to the processed picture. Malformed output is not an error.
        """
        ...
