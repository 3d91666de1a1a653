"""How an answer goes: as text, as thoughts and then text, or from one object in the picture to the
next (``moondream.py`` upstream: ``_generate_answer``, ``_generate_reasoning``,
``_generate_points``).

What isn't text stands among an answer's ids as a number below 0: a coordinate's bin, the bins of a
width and height, or a token that was only thought.
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
from raylens.engine.model import NO_TOKEN, ModelOutput, Progress
from raylens.engine.transfer import upload


class AnswerKind(Enum):
    TEXT = auto()
    THOUGHTS = auto()
    """And then text."""
    BOXES = auto()
    POINTS = auto()


@dataclass(frozen=True)
class DecodePlan:
    """What an answer is to be: of up to ``most`` objects, or thoughts and text of up to ``most``
    tokens each."""

    kind: AnswerKind
    most: int = 0


class PseudoTokens:
    """The numbers below 0: coordinates first, then sizes, then thoughts."""

    def __init__(self, config: RegionConfig) -> None:
        self._coordinates, self._bins = config.coord_out_dim, config.size_bins
        self._thoughts = self._coordinates + self._bins**2

    def coordinate(self, bins: Tensor) -> Tensor:
        return -1 - bins

    def size(self, bins: Tensor) -> Tensor:
        """Of the bins of width and height (sizes, 2)."""
        width, height = bins.unbind(-1)
        return -1 - (self._coordinates + width * self._bins + height)

    def thought(self, token: int) -> int:
        return -1 - (self._thoughts + token)

    def token_of(self, number: int) -> int | None:
        """The token that was thought."""
        return -1 - number - self._thoughts if number <= -1 - self._thoughts else None

    def bin_of(self, number: int) -> int | None:
        """A coordinate's bin."""
        return -1 - number if -1 - self._coordinates < number < 0 else None

    def bins_of(self, number: int) -> tuple[int, int]:
        """A size's bins."""
        return divmod(-1 - number - self._coordinates, self._bins)

    def read(self, numbers: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where each is found in a table of ``vocabulary`` tokens and then of all coordinates (any
        place for a size); whether it is a size; and its bins (numbers, 2)."""
        beyond = -1 - numbers
        thought = beyond - self._thoughts
        spoken = torch.where(
            numbers >= 0, numbers, vocabulary + beyond.clamp(0, self._coordinates - 1)
        )
        size = beyond - self._coordinates
        bins = torch.stack(
            [size.clamp(min=0) // self._bins % self._bins, size.clamp(min=0) % self._bins], -1
        )
        return torch.where(thought >= 0, thought, spoken), (size >= 0) & (thought < 0), bins


class Embedding:
    """Tokens, coordinates and sizes to states. A coordinate has few bins, whose states are worked
    out once."""

    def __init__(
        self, tokens: Tensor, ids: PseudoTokens, head: RegionHead, config: RegionConfig
    ) -> None:
        self._vocabulary = len(tokens)
        self._ids = ids
        self._head = head
        bins = torch.arange(config.coord_out_dim, device=tokens.device, dtype=torch.float32)
        self._table = torch.cat([tokens, head.coordinate_states(head.coordinates_of(bins))])

    def __call__(self, numbers: Tensor) -> Tensor:
        """(numbers,) -> (numbers, hidden)."""
        places, is_size, bins = self._ids.read(numbers, self._vocabulary)
        sizes = self._head.size_states(self._head.sizes_of(bins.float()))
        return torch.where(is_size[:, None], sizes, F.embedding(places, self._table))


class MoondreamTokenPolicy:
    """Implements :class:`raylens.engine.model.TokenPolicy`. Places are the most likely ones, and so
    is the end of their list: prompts for them are greedy."""

    def __init__(self, config: TokenizerConfig, ids: PseudoTokens, head: RegionHead) -> None:
        self._config = config
        self._ids = ids
        self._head = head

    def mask_logits(self, logits: Tensor, answers: Sequence[Progress]) -> Tensor:
        """Implements :meth:`raylens.engine.model.TokenPolicy.mask_logits`: an answer's first token
        is free, as it is upstream."""
        shut = [(row, token) for row, answer in enumerate(answers) for token in self._shut(answer)]
        if not shut:
            return logits
        rows, tokens = upload(np.array(shut).T, logits.device)
        return logits.index_put((rows, tokens), logits.new_full((), -torch.inf))

    def _shut(self, answer: Progress) -> tuple[int, ...]:
        plan: DecodePlan = answer.prompt.decode_plan
        if plan.kind not in (AnswerKind.TEXT, AnswerKind.THOUGHTS) or not answer.tokens_chosen:
            return ()
        if plan.kind is AnswerKind.THOUGHTS and self._thinks(answer):
            return self._config.eos_id, self._config.size_id
        return (self._config.answer_id,) if self._spoken(answer) else ()

    @torch.inference_mode()
    def resolve_tokens(
        self, chosen: Tensor, scores: ModelOutput, answers: Sequence[Progress]
    ) -> Tensor:
        """Implements :meth:`raylens.engine.model.TokenPolicy.resolve_tokens`."""
        kinds = [answer.prompt.decode_plan.kind for answer in answers]
        if all(kind is AnswerKind.TEXT for kind in kinds):
            return chosen
        settled, places = chosen.clone(), [self._place(answer) for answer in answers]
        if any(kind is AnswerKind.THOUGHTS for kind in kinds):
            tokens = chosen.tolist()
            thoughts = [row for row, kind in enumerate(kinds) if kind is AnswerKind.THOUGHTS]
            told = [self._next_thought(tokens[row], answers[row]) for row in thoughts]
            for row, number in zip(thoughts, told, strict=True):
                places[row] = _NextValue.COORDINATE if number is None else None
            settled[upload(thoughts, chosen.device)] = upload(
                [number or 0 for number in told], chosen.device
            )
        self._read_places(settled, places, scores.states)
        return settled

    def _place(self, answer: Progress) -> _NextValue | None:
        """What is to be read from the row's state, if the answer is a list of objects."""
        plan: DecodePlan = answer.prompt.decode_plan
        if plan.kind not in (AnswerKind.BOXES, AnswerKind.POINTS):
            return None
        told, within = divmod(answer.tokens_chosen, 3 if plan.kind is AnswerKind.BOXES else 2)
        if within:
            return _NextValue.SIZE if within == 2 else _NextValue.COORDINATE
        return _NextValue.END if told == plan.most else _NextValue.COORDINATE_OR_END

    def _read_places(
        self, settled: Tensor, places: Sequence[_NextValue | None], states: Tensor
    ) -> None:
        """Puts coordinates, sizes and ends in the place of the tokens that were chosen."""
        end = self._config.eos_id
        rows = {
            place: [row for row, each in enumerate(places) if each is place] for place in _NextValue
        }
        if rows[_NextValue.END]:
            settled[upload(rows[_NextValue.END], settled.device)] = end
        if either := rows[_NextValue.COORDINATE] + rows[_NextValue.COORDINATE_OR_END]:
            index = upload(either, settled.device)
            may_end = upload(
                [int(places[row] is _NextValue.COORDINATE_OR_END) for row in either], settled.device
            ).bool()
            numbers = self._ids.coordinate(self._head.coordinates(states[index]))
            settled[index] = torch.where(may_end & (settled[index] == end), end, numbers)
        if rows[_NextValue.SIZE]:
            index = upload(rows[_NextValue.SIZE], settled.device)
            settled[index] = self._ids.size(self._head.sizes(states[index]))

    def _next_thought(self, token: int, answer: Progress) -> int | None:
        """The number that follows, if a sampler has chosen this token; None if it is a coordinate."""
        plan: DecodePlan = answer.prompt.decode_plan
        if not self._thinks(answer):
            full = self._spoken(answer) == plan.most and token != self._config.eos_id
            return NO_TOKEN if full else token
        if answer.tokens_chosen == plan.most:
            token = self._config.answer_id
        return None if token == self._config.coord_id else self._ids.thought(token)

    def _thinks(self, answer: Progress) -> bool:
        return self._ids.thought(self._config.answer_id) not in answer.output_ids

    def _spoken(self, answer: Progress) -> int:
        """Tokens of text so far."""
        if answer.prompt.decode_plan.kind is AnswerKind.TEXT:
            return answer.tokens_chosen
        return (
            len(answer.output_ids)
            - 1
            - answer.output_ids.index(self._ids.thought(self._config.answer_id))
        )


class _NextValue(Enum):
    """What is yet to be read from a row's state."""

    COORDINATE = auto()
    COORDINATE_OR_END = auto()
    """The end of the list, if that is the token that was chosen."""
    SIZE = auto()
    END = auto()
