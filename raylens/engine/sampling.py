"""The choice of the next token, one row at a time: rows of a batch never share parameters or random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from raylens.types import SamplingParams


class Sampler:
    """Draws by temperature and top-p (nucleus sampling, Holtzman et al. 2019); greedy at temperature 0."""

    def __init__(self, params: SamplingParams, offset: int = 0) -> None:
        self._temperature = params.temperature
        self._top_p = params.top_p
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((params.seed + offset) % 2**63)

    def choose(self, logits: Tensor) -> int:
        """A token id from float32 logits of shape (vocabulary,). Raises ``ValueError`` where they are not finite."""
        best = logits.max()
        if not torch.isfinite(best):
            raise ValueError("the logits are not finite")
        if self._temperature == 0:
            return int(logits.argmax())
        # From the best one down, so that a temperature near 0 overflows to -inf only.
        probabilities = torch.softmax((logits - best).double().cpu() / self._temperature, dim=-1)
        if self._top_p < 1:
            probabilities = self._nucleus(probabilities)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """Keeps the fewest most likely tokens whose probabilities reach ``top_p``; at least one."""
        ordered, ids = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= self._top_p
        outside[0] = False
        return probabilities.index_fill(-1, ids[outside], 0)
