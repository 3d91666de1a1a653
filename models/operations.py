"""Operations that several families' layers are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 256


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (pictures, patches, heads, head size) each; (pictures, patches, heads · head size)."""
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return mixed.transpose(1, 2).flatten(2)


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) of (tokens, heads, head size): a head's halves are the pairs, and ``sin`` is
    negative for the first half."""
    halves = states.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(states * cos, halves, sin)


def normalized(pixels: Tensor, scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (…, channels, height, width) of 0 to 255 as the image processors of transformers give them, float32."""
    shape = (-1, 1, 1)
    average, spread = (torch.tensor(values, device=pixels.device).view(shape) for values in (mean, std))
    return (pixels.float() * scale - average) / spread


def by_rows(layers: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, states: Tensor) -> None:
    """``states = layers(inputs, states)`` for (rows, …) of both, some rows at a time: what lies between several layers
    stays in the cores' caches, and oneDNN, which leaves cores idle on some taller products, keeps all at work. A GPU
    takes all at once."""
    rows = _ROWS if states.device.type == "cpu" else len(states)
    for given, part in zip(inputs.split(rows), states.split(rows), strict=True):
        part.copy_(layers(given, part))
