"""What attention takes in every family: rotary positions, and the patches of a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (pictures, patches, heads, head size) each; (pictures, patches, heads · head size)."""
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) of (tokens, heads, head size): a head's halves are the pairs, and ``sin`` is
    negative for the first half."""
    halves = states.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(states * cos, halves, sin)
