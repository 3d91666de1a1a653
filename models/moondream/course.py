"""How an answer goes: as text, as thoughts and then text, or from one object in the picture to the next
(``moondream.py`` upstream: ``_generate_answer``, ``_generate_reasoning``, ``_generate_points``).

What isn't text stands among an answer's ids as a number below 0: a coordinate's bin, the bins of a width and height, or
a token that was only thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.moondream.config import RegionConfig, TokenizerConfig
from models.moondream.region import RegionHead
from raylens.engine.model import Progress, Scores


class Kind(Enum):
    TEXT = auto()
    THOUGHTS = auto()
    """And then text."""
    BOXES = auto()
    POINTS = auto()


@dataclass(frozen=True)
class Plan:
    """What an answer is to be: of up to ``most`` objects, or thoughts and text of up to ``most`` tokens each."""

    kind: Kind
    most: int = 0


class Ids:
    """The numbers below 0: coordinates first, then sizes, then thoughts."""

    def __init__(self, config: RegionConfig) -> None:
        self._coordinates, self._bins = config.coord_out_dim, config.size_bins
        self._thoughts = self._coordinates + self._bins**2

    def coordinate(self, bin: int) -> int:
        return -1 - bin

    def size(self, bins: tuple[int, int]) -> int:
        width, height = bins
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
        """Where each is found in a table of ``vocabulary`` tokens and then of all coordinates (any place for a size);
        whether it is a size; and its bins (numbers, 2)."""
        beyond = -1 - numbers
        thought = beyond - self._thoughts
        spoken = torch.where(numbers >= 0, numbers, vocabulary + beyond.clamp(0, self._coordinates - 1))
        size = beyond - self._coordinates
        bins = torch.stack([size.clamp(min=0) // self._bins % self._bins, size.clamp(min=0) % self._bins], -1)
        return torch.where(thought >= 0, thought, spoken), (size >= 0) & (thought < 0), bins


class Embedding:
    """Tokens, coordinates and sizes to states. A coordinate has few bins, whose states are worked out once."""

    def __init__(self, tokens: Tensor, ids: Ids, head: RegionHead, config: RegionConfig) -> None:
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


class MoondreamCourse:
    """Implements :class:`raylens.engine.model.Course`. Places are the most likely ones, and so is the end of their
    list: prompts for them are greedy."""

    def __init__(self, config: TokenizerConfig, ids: Ids, head: RegionHead) -> None:
        self._config = config
        self._ids = ids
        self._head = head

    def forbid(self, logits: Tensor, answers: Sequence[Progress]) -> Tensor:
        """Implements :meth:`raylens.engine.model.Course.forbid`: an answer's first token is free, as it is upstream."""
        shut = [(row, token) for row, answer in enumerate(answers) for token in self._shut(answer)]
        if not shut:
            return logits
        rows, tokens = torch.tensor(shut, device=logits.device).T
        return logits.index_put((rows, tokens), logits.new_tensor(-torch.inf))

    def _shut(self, answer: Progress) -> tuple[int, ...]:
        plan: Plan = answer.prompt.plan
        if plan.kind not in (Kind.TEXT, Kind.THOUGHTS) or not answer.output_ids:
            return ()
        if plan.kind is Kind.THOUGHTS and self._thinks(answer):
            return self._config.eos_id, self._config.size_id
        return (self._config.answer_id,) if self._spoken(answer) else ()

    def settle(
        self, chosen: Sequence[int | Exception], scores: Scores, answers: Sequence[Progress]
    ) -> list[int | Exception | None]:
        """Implements :meth:`raylens.engine.model.Course.settle`."""
        settled: list[Any] = [
            token if isinstance(token, Exception) else self._next(token, answer)
            for token, answer in zip(chosen, answers, strict=True)
        ]
        coordinates = [row for row, number in enumerate(settled) if number is _COORDINATE]
        sizes = [row for row, number in enumerate(settled) if number is _SIZE]
        with torch.inference_mode():
            if coordinates:
                for row, bin in zip(coordinates, self._head.coordinates(scores.states[coordinates]), strict=True):
                    settled[row] = self._ids.coordinate(bin)
            if sizes:
                for row, bins in zip(sizes, self._head.sizes(scores.states[sizes]), strict=True):
                    settled[row] = self._ids.size(bins)
        return settled

    def _next(self, token: int, answer: Progress) -> int | _Place | None:
        plan: Plan = answer.prompt.plan
        if plan.kind is Kind.THOUGHTS:
            return self._next_thought(token, answer, plan)
        if plan.kind is Kind.TEXT:
            return token
        numbers = 3 if plan.kind is Kind.BOXES else 2
        told, within = divmod(len(answer.output_ids), numbers)
        if within == 2:
            return _SIZE
        ends = within == 0 and (told == plan.most or token == self._config.eos_id)
        return self._config.eos_id if ends else _COORDINATE

    def _next_thought(self, token: int, answer: Progress, plan: Plan) -> int | _Place | None:
        if not self._thinks(answer):
            full = self._spoken(answer) == plan.most and token != self._config.eos_id
            return None if full else token
        if len(answer.output_ids) == plan.most:
            token = self._config.answer_id
        return _COORDINATE if token == self._config.coord_id else self._ids.thought(token)

    def _thinks(self, answer: Progress) -> bool:
        return self._ids.thought(self._config.answer_id) not in answer.output_ids

    def _spoken(self, answer: Progress) -> int:
        """Tokens of text so far."""
        if answer.prompt.plan.kind is Kind.TEXT:
            return len(answer.output_ids)
        return len(answer.output_ids) - 1 - answer.output_ids.index(self._ids.thought(self._config.answer_id))


class _Place(Enum):
    """What is yet to be read from the row's state."""

    COORDINATE = auto()
    SIZE = auto()


_COORDINATE, _SIZE = _Place.COORDINATE, _Place.SIZE
