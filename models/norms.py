"""Norms of the text models' layers that torch has as functions only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RMSNorm:
    """Root mean square layer normalization (Zhang and Sennrich 2019)."""

    weight: Tensor
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        return F.rms_norm(states, self.weight.shape, self.weight, self.eps)
