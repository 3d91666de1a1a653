"""Token policy of Moondream's answers: text, reasoning and then text, or a list of objects.

A pseudo token is a negative number among the output ids of an answer. It stands for a coordinate,
for a width and height, or for a token of the reasoning. The engine decodes no text from it, and the
model's embedding maps it to the input state of what it stands for.

Follows ``_generate_answer``, ``_generate_reasoning`` and ``_generate_points`` of ``moondream.py``
upstream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.moondream.config import RegionConfig, TokenizerConfig
from models.moondream.region import RegionHead
from raylens.engine.model import NO_TOKEN, AnswerProgress, ModelOutput, TokenPolicy
from raylens.engine.transfer import upload


class AnswerType(Enum):
    TEXT = auto()
    REASONING = auto()
    """Reasoning, and then text."""
    BOXES = auto()
    POINTS = auto()


@dataclass(frozen=True)
class DecodePlan:
    """The type of an answer and its limit."""

    answer_type: AnswerType
    max_objects: int = 0
    """Limit of boxes or points."""
    max_tokens: int = 0
    """Limit of reasoning tokens, and of the text tokens after them."""


class PseudoTokens:
    """The ranges of pseudo tokens: downwards from −1 coordinates, sizes, then reasoning tokens."""

    def __init__(self, config: RegionConfig) -> None:
        self._coordinate_bins = config.coord_out_dim
        self._size_bins = config.size_bins
        self._first_reasoning = self._coordinate_bins + self._size_bins**2

    def encode_coordinates(self, bins: Tensor) -> Tensor:
        """Return the pseudo tokens (count,) of coordinates' bins (count,)."""
        return -1 - bins

    def encode_sizes(self, bins: Tensor) -> Tensor:
        """Return the pseudo tokens (count,) of the bins of widths and heights (count, 2)."""
        width, height = bins.unbind(-1)
        return -1 - (self._coordinate_bins + width * self._size_bins + height)

    def encode_reasoning(self, token: int) -> int:
        """Return the pseudo token of a token of the reasoning."""
        return -1 - (self._first_reasoning + token)

    def decode_coordinate(self, output_id: int) -> int | None:
        """Return a coordinate's bin, or None if the id is not a coordinate."""
        return -1 - output_id if -1 - self._coordinate_bins < output_id < 0 else None

    def decode_size(self, output_id: int) -> tuple[int, int]:
        """Return the bins of a width and height. The id must be a size."""
        return divmod(-1 - output_id - self._coordinate_bins, self._size_bins)

    def decode_reasoning(self, output_id: int) -> int | None:
        """Return a token of the reasoning, or None if the id is not one."""
        token = -1 - output_id - self._first_reasoning
        return token if token >= 0 else None

    def split(self, ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split ids (count,) into those with a row in the embedding table, and sizes.

        The table has a row for each of ``vocab_size`` tokens and then one for each coordinate bin.
        Returns the table rows (count,), arbitrary for sizes; whether each id is a size (count,);
        and the bins of width and height (count, 2), arbitrary for other ids.
        """
        offsets = -1 - ids
        reasoning = offsets - self._first_reasoning
        coordinate_rows = vocab_size + offsets.clamp(0, self._coordinate_bins - 1)
        rows = torch.where(ids >= 0, ids, coordinate_rows)
        sizes = offsets - self._coordinate_bins
        width_bins = sizes.clamp(min=0) // self._size_bins % self._size_bins
        height_bins = sizes.clamp(min=0) % self._size_bins
        return (
            torch.where(reasoning >= 0, reasoning, rows),
            (sizes >= 0) & (reasoning < 0),
            torch.stack([width_bins, height_bins], -1),
        )


class Embedding:
    """Input states of tokens and pseudo tokens.

    There are few coordinate bins, so their states are computed once and kept in a table.
    """

    def __init__(
        self,
        tokens: Tensor,
        pseudo_tokens: PseudoTokens,
        regions: RegionHead,
        config: RegionConfig,
    ) -> None:
        self._vocab_size = len(tokens)
        self._pseudo_tokens = pseudo_tokens
        self._regions = regions
        bins = torch.arange(config.coord_out_dim, device=tokens.device, dtype=torch.float32)
        coordinates = regions.encode_coordinates(regions.bins_to_coordinates(bins))
        self._table = torch.cat([tokens, coordinates])

    def __call__(self, ids: Tensor) -> Tensor:
        """(ids,) -> (ids, hidden)."""
        rows, is_size, size_bins = self._pseudo_tokens.split(ids, self._vocab_size)
        sizes = self._regions.encode_sizes(self._regions.bins_to_sizes(size_bins.float()))
        return torch.where(is_size[:, None], sizes, F.embedding(rows, self._table))


class MoondreamTokenPolicy(TokenPolicy):
    """Masks control tokens in text and reasoning, and reads coordinates and sizes from states.

    Coordinates and sizes are the most likely ones. The end of a list of objects must be too,
    so prompts for boxes and points are greedy.
    """

    def __init__(
        self, config: TokenizerConfig, pseudo_tokens: PseudoTokens, regions: RegionHead
    ) -> None:
        self._config = config
        self._pseudo_tokens = pseudo_tokens
        self._regions = regions

    def mask_logits(self, logits: Tensor, answers: Sequence[AnswerProgress]) -> Tensor:
        masked = [
            (row, token)
            for row, answer in enumerate(answers)
            for token in self._masked_tokens(answer)
        ]
        if not masked:
            return logits
        rows, tokens = upload(np.array(masked).T, logits.device)
        return logits.index_put((rows, tokens), logits.new_full((), -torch.inf))

    def _masked_tokens(self, answer: AnswerProgress) -> tuple[int, ...]:
        if not answer.num_output_tokens:
            return ()  # upstream masks nothing before the first token
        match answer.prompt.decode_plan.answer_type:
            case AnswerType.REASONING if self._is_reasoning(answer):
                return self._config.eos_id, self._config.size_id
            case AnswerType.REASONING | AnswerType.TEXT if self._text_length(answer):
                return (self._config.answer_id,)
        return ()

    @torch.inference_mode()
    def resolve_tokens(
        self, sampled: Tensor, output: ModelOutput, answers: Sequence[AnswerProgress]
    ) -> Tensor:
        answer_types = [answer.prompt.decode_plan.answer_type for answer in answers]
        if all(answer_type is AnswerType.TEXT for answer_type in answer_types):
            return sampled
        resolved = sampled.clone()
        next_values = [self._next_value(answer) for answer in answers]
        reasoning_rows = _rows_with(AnswerType.REASONING, answer_types)
        if reasoning_rows:
            tokens = sampled.tolist()
            next_ids = [self._next_id(tokens[row], answers[row]) for row in reasoning_rows]
            for row, next_id in zip(reasoning_rows, next_ids, strict=True):
                next_values[row] = _NextValue.COORDINATE if next_id is None else None
            resolved[upload(reasoning_rows, sampled.device)] = upload(
                [next_id or 0 for next_id in next_ids], sampled.device
            )
        self._read_values(resolved, next_values, output.hidden_states)
        return resolved

    def _next_value(self, answer: AnswerProgress) -> _NextValue | None:
        """Return the next value of a list of objects; None if the answer is not one."""
        plan: DecodePlan = answer.prompt.decode_plan
        if plan.answer_type not in (AnswerType.BOXES, AnswerType.POINTS):
            return None
        ids_per_object = 3 if plan.answer_type is AnswerType.BOXES else 2
        objects, position = divmod(answer.num_output_tokens, ids_per_object)
        if position:
            return _NextValue.SIZE if position == 2 else _NextValue.COORDINATE
        return _NextValue.END if objects == plan.max_objects else _NextValue.COORDINATE_OR_END

    def _read_values(
        self, resolved: Tensor, next_values: Sequence[_NextValue | None], states: Tensor
    ) -> None:
        """Overwrite the tokens of rows that have a next value."""
        device = resolved.device
        eos_id = self._config.eos_id
        if end_rows := _rows_with(_NextValue.END, next_values):
            resolved[upload(end_rows, device)] = eos_id
        coordinate_rows = _rows_with(_NextValue.COORDINATE, next_values)
        coordinate_or_end_rows = _rows_with(_NextValue.COORDINATE_OR_END, next_values)
        if rows := coordinate_rows + coordinate_or_end_rows:
            index = upload(rows, device)
            may_end = upload(
                [0] * len(coordinate_rows) + [1] * len(coordinate_or_end_rows), device
            ).bool()
            bins = self._regions.decode_coordinates(states[index])
            coordinates = self._pseudo_tokens.encode_coordinates(bins)
            resolved[index] = torch.where(
                may_end & (resolved[index] == eos_id), eos_id, coordinates
            )
        if size_rows := _rows_with(_NextValue.SIZE, next_values):
            index = upload(size_rows, device)
            bins = self._regions.decode_sizes(states[index])
            resolved[index] = self._pseudo_tokens.encode_sizes(bins)

    def _next_id(self, token: int, answer: AnswerProgress) -> int | None:
        """Return the output id for a sampled token of reasoning or of the text after it.

        None: the next id is a coordinate, which is read from the state.
        """
        plan: DecodePlan = answer.prompt.decode_plan
        if not self._is_reasoning(answer):
            is_full = self._text_length(answer) == plan.max_tokens
            return NO_TOKEN if is_full and token != self._config.eos_id else token
        if answer.num_output_tokens == plan.max_tokens:
            token = self._config.answer_id
        if token == self._config.coord_id:
            return None
        return self._pseudo_tokens.encode_reasoning(token)

    def _is_reasoning(self, answer: AnswerProgress) -> bool:
        return self._end_of_reasoning not in answer.output_ids

    def _text_length(self, answer: AnswerProgress) -> int:
        """Return the number of text tokens so far."""
        if answer.prompt.decode_plan.answer_type is AnswerType.TEXT:
            return answer.num_output_tokens
        return len(answer.output_ids) - 1 - answer.output_ids.index(self._end_of_reasoning)

    @property
    def _end_of_reasoning(self) -> int:
        return self._pseudo_tokens.encode_reasoning(self._config.answer_id)


class _NextValue(Enum):
    """Value that replaces the sampled token of a row."""

    COORDINATE = auto()
    COORDINATE_OR_END = auto()
    """The end of the list if EOS was sampled, otherwise a coordinate."""
    SIZE = auto()
    END = auto()


def _rows_with(value: Enum, values: Sequence[Enum | None]) -> list[int]:
    return [row for row, row_value in enumerate(values) if row_value is value]
