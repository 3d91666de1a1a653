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
from raylens.engine.tool_calls import ToolCallStyle
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
    """A preprocessed request: token ids, pictures and positions."""

    token_ids: tuple[int, ...]
    pictures: tuple[PictureInput, ...] = ()
    """In the order of their image tokens."""
    image_starts: tuple[int, ...] = ()
    """For each picture, the index of its first image token."""
    positions: NDArray[np.int64] | None = None
    """Rotary positions (axes, tokens): one axis for plain RoPE, three for M-RoPE (time, height,
    width). None means 0, 1, 2, …"""
    bidirectional_prefix_len: int = 0
    """Number of leading tokens that attend to each other, without a causal mask. They are
    prefilled in one chunk."""
    max_output_tokens: int | None = None
    """Maximum number of tokens in the answer. None means the request's ``max_tokens``."""
    limit_field: str | None = None
    """Request field that determines the answer's maximum length, which errors name if the answer
    is too long for the KV cache. None means that the prompt is too long then."""
    greedy: bool = False
    """Whether to decode greedily, and ignore all of the request's sampling parameters (stop strings
    and logprobs too) except ``max_tokens``, ``n`` and ``json_schema``."""
    continues_answer: bool = False
    """Whether the answer continues a text at the prompt's end, so that white space at its start
    counts."""
    leading_space: bool = False
    """Whether answers begin with a space."""
    tool_call_style: ToolCallStyle = ToolCallStyle.TAGGED
    """How the answer writes the calls of the request's tools."""
    decode_plan: Any = None
    """The family's own data for its :class:`TokenPolicy` and ``parse_findings``, such as the
    expected layout of the answer."""
    policy_reads_token_ids: bool = False
    """Whether the :class:`TokenPolicy` reads the values of the answer's token ids, not only their
    number. If so, each token must reach the host before the next decode step."""

    def max_total_tokens(self, max_tokens: int, max_length: int) -> int:
        """Return the maximum number of tokens of the prompt and its answer together.

        ``max_tokens`` limits the answer, unless ``max_output_tokens`` is set. ``max_length`` limits
        the sum.
        """
        max_output = max_tokens if self.max_output_tokens is None else self.max_output_tokens
        return min(max_length, len(self.token_ids) + max_output)

    @property
    def next_position(self) -> int:
        """Rotary position of the answer's first token.

        Largest position of the last prompt token on any axis, plus 1, as in transformers'
        ``generate``. (A plain forward pass uses the largest position in the whole prompt, which can
        be larger for long videos.)
        """
        if self.positions is None:
            return len(self.token_ids)
        return int(self.positions[:, -1].max()) + 1


@dataclass(frozen=True)
class KVSpec:
    """Layout, dtype and device of one token's keys and values."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: str

    @property
    def bytes_per_token(self) -> int:
        values = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return values * self.dtype.itemsize


@dataclass(frozen=True)
class KVRows:
    """KV cache rows that are read and written together.

    The tensors may have more rows than ``lengths`` has entries. No sequence owns the extra rows. A
    model may use them to pad a batch to a fixed size.
    """

    layer_kv: Sequence[Tensor]
    """For each layer (2, rows, kv heads, capacity, head_dim): keys, then values."""
    lengths: Sequence[int]
    """Number of tokens in each row. During prefill this already includes the chunk being
    written."""
    arena_kv: Sequence[Tensor] = ()
    """For each layer, the tensor of the whole arena (see :mod:`raylens.engine.kv_cache`), if
    ``layer_kv`` are views of it; otherwise empty."""
    first_row: int = 0
    """Index of the first of these rows in ``arena_kv``."""


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """Logits and hidden states at the last token of each row."""

    logits: Tensor
    """float32 (rows, vocabulary)."""
    hidden_states: Tensor
    """Output of the last layer, before the final norm (rows, hidden)."""

    def select(self, row_indices: Sequence[int]) -> ModelOutput:
        """Return the output of these ascending rows; ``self`` if they are all rows."""
        if len(row_indices) == len(self.logits):
            return self
        index = upload(row_indices, self.logits.device)
        return ModelOutput(self.logits[index], self.hidden_states[index])


@dataclass(frozen=True, eq=False)
class PrefillChunk:
    """Consecutive tokens of one prompt, to be prefilled."""

    start: int
    """Index of the first token in the prompt."""
    token_ids: Sequence[int]
    features: Sequence[tuple[int, Tensor]]
    """For each picture with image tokens in this chunk: the index of the first of them in
    ``token_ids``, and their features (tokens, hidden)."""
    positions: NDArray[np.int64]
    """Rotary positions (axes, tokens)."""
    bidirectional_prefix_len: int = 0
    """:attr:`Prompt.bidirectional_prefix_len`; not relative to ``start``."""


class AnswerProgress(Protocol):
    """The tokens of an answer so far."""

    prompt: Prompt
    output_ids: list[int]
    """Token ids that have reached the host. They are complete if the prompt's
    ``policy_reads_token_ids`` is set; otherwise the last one or two may be
    missing."""
    num_output_tokens: int
    """Number of sampled tokens, including those that have not reached the host yet."""


NO_TOKEN = -(2**62)
"""Returned by a :class:`TokenPolicy` instead of an id, to end an answer at a limit that the
model family sets. The finish reason is ``length``."""


class TokenPolicy(Protocol):
    """Hooks for a family whose answers contain more than text tokens.

    Values such as coordinates are encoded as negative ids, in a format private to the family. They
    appear in ``output_ids``, and ``Model.decode`` accepts them as input.
    """

    def mask_logits(self, logits: Tensor, answers: Sequence[AnswerProgress]) -> Tensor:
        """Return a copy of the logits with −∞ for every token that is not allowed next.

        Takes and returns float32 (answers, vocabulary).
        """
        ...

    def resolve_tokens(
        self, sampled: Tensor, output: ModelOutput, answers: Sequence[AnswerProgress]
    ) -> Tensor:
        """Turn sampled tokens into the ids to append, int64 (answers,).

        An id is the token itself, a negative id of the family, or ``NO_TOKEN``. ``sampled``, int64
        (answers,), and all other tensors are on the model's device. Must not synchronize with the
        device unless an answer's prompt has ``policy_reads_token_ids`` set.
        """
        ...


class Model(Protocol):
    """One loaded checkpoint. All methods except ``prepare`` run on the engine's thread."""

    tasks: frozenset[str]
    """Names of the supported tasks of :mod:`raylens.core.types`, such as ``caption``; includes
    ``REASONING`` if the model can reason before it answers."""
    device: str
    parameters: int | None = None
    """Number of the weights' values, if it is known."""
    max_pictures: int | None = None
    """Pictures that a request may have; None if the context alone limits them."""
    frames_as_pictures: int | None = 4
    """Frames that stand for a video, because the model reads pictures only; None if it reads
    videos."""
    tokenizer: Tokenizer
    eos_ids: frozenset[int]
    vocab_size: int
    """Width of the logits."""
    max_length: int
    """Maximum number of tokens in a sequence, prompt and answer together."""
    kv_spec: KVSpec
    token_policy: TokenPolicy | None
    """None if every answer is text."""

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Return the request's prompt. Can be called from any thread.

        Raises ``UnsupportedTask`` and ``InvalidRequest``.
        """
        ...

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which a picture of this size is resized, in pixels.

        Coordinates in the text of an answer, if there are any, are pixels of that size.
        """
        return width, height

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Return the features of each picture (tokens, hidden). Yield between slices of work."""
        ...

    def prefill(
        self,
        chunks: Sequence[PrefillChunk],
        get_rows: Callable[[], Sequence[KVRows]],
        max_slice_tokens: int,
    ) -> Generator[None, None, ModelOutput]:
        """Prefill chunks of several prompts together. Return the output at each chunk's last token.

        Writes the keys and values of each chunk to its row, after the first ``chunk.start`` tokens.
        ``get_rows()`` returns one single-row :class:`KVRows` per chunk. Call it again after each
        yield, because rows may have moved.

        Yields after about as much work as prefilling ``max_slice_tokens`` tokens.
        """
        ...

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        """Run one decode step over the rows in ``rows_by_arena``, concatenated.

        ``rows_by_arena`` has one :class:`KVRows` for each arena with a sequence to decode, or a
        single row if one sequence is retried alone. ``lengths[row]`` below is that row's entry in
        their concatenated ``lengths``.

        ``token_ids``, int64 (rows,) on the model's device, and the rotary ``positions`` (rows,) are
        the inputs.

        Writes each token's keys and values at index ``lengths[row]`` and does not advance the
        lengths, so the call is idempotent. Does not synchronize with the device.
        """
        ...

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """Return what a finished answer contains besides text.

        Coordinates are fractions of the width and height of the preprocessed picture, normally in
        [0, 1]. A box at the picture's edge may extend outside that range. Malformed output is not
        an error.
        """
        ...
