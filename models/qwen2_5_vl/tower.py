"""The vision tower (``modeling_qwen2_5_vl.py`` in transformers)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.linear import Packer
from models.llama import Layer, RMSNorm
from models.operations import attention, by_rows, turn

EPS = 1e-6
"""Of the norms."""


@dataclass(frozen=True)
class Grid:
    """Patches of a picture: frames (in pairs), rows, columns."""

    frames: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.frames * self.rows * self.columns


class Tower:
    """The vision tower: windows in most layers, the whole picture in a few, and 2 × 2 patches merged to a token."""

    def __init__(self, tower: Any, packer: Packer) -> None:
        config = tower.config
        self._heads = int(config.num_heads)
        self._head_dim = int(config.hidden_size) // self._heads
        self._merge = int(config.spatial_merge_size)
        self._window = int(config.window_size) // self._merge // int(config.patch_size)
        self._whole = frozenset(config.fullatt_block_indexes)
        self._frequencies = packer.tensor(tower.rotary_pos_emb.inv_freq).float()
        self._patches = packer.weight(tower.patch_embed.proj.weight.flatten(1))
        self._layers = [_layer(block, packer) for block in tower.blocks]
        self._norm = RMSNorm(packer.tensor(tower.merger.ln_q.weight), EPS)
        self._expand, self._contract = (packer.linear(tower.merger.mlp[place]) for place in (0, 2))

    def slices(self, pixels: Tensor, grid: Grid, work: int) -> Generator[None, None, Tensor]:
        """Image tokens (tokens, hidden) of patches (patches, values), ``work`` patches times layers at a time."""
        order, sizes = window_order(grid.frames, grid.rows // self._merge, grid.columns // self._merge, self._window)
        windows = [(count, size * self._merge**2) for count, size in sizes]
        with torch.inference_mode():
            states = self._in_order(self._patches(pixels), order)
            cos, sin = self._turns(grid, order, states)
        layers = max(1, work // grid.patches)
        for first in range(0, len(self._layers), layers):
            if first:
                yield
            with torch.inference_mode():
                for index in range(first, min(first + layers, len(self._layers))):
                    spans = [(grid.frames, grid.rows * grid.columns)] if index in self._whole else windows
                    states = self._block(index, states, cos, sin, spans)
        with torch.inference_mode():
            merged = self._norm(states).view(len(order), -1)
            tokens = self._contract(F.gelu(self._expand(merged)))
            return tokens[torch.from_numpy(np.argsort(order)).to(tokens.device)]

    def _in_order(self, states: Tensor, order: NDArray[np.int64]) -> Tensor:
        """Rows that belong to image tokens, ``merge`` × ``merge`` each, in the tokens' new order."""
        index = torch.from_numpy(order).to(states.device)
        return states.view(len(order), self._merge**2, -1)[index].flatten(0, 1)

    def _turns(self, grid: Grid, order: NDArray[np.int64], like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (patches, 1, head size), float32: half of the frequencies turn with the row."""
        rows, columns, merge = grid.rows // self._merge, grid.columns // self._merge, self._merge
        _, row, column, inner_row, inner_column = np.unravel_index(
            np.arange(grid.patches), (grid.frames, rows, columns, merge, merge)
        )
        places = np.stack([row * merge + inner_row, column * merge + inner_column], -1).astype(np.float32)
        angles = torch.from_numpy(places).to(like.device)[:, :, None] * self._frequencies.to(like.device)
        angles = self._in_order(angles.flatten(1), order)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]

    def _block(self, index: int, states: Tensor, cos: Tensor, sin: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        layer = self._layers[index]
        mixed = layer.qkv(layer.attention_norm(states)).unflatten(-1, (3, self._heads, self._head_dim))
        query, key, value = mixed.unbind(1)
        # Turned in float32, as in the stock tower.
        query, key = (turn(part.float(), cos, sin).to(value.dtype) for part in (query, key))
        parts, first = [], 0
        for count, size in spans:
            last = first + count * size
            window = (part[first:last].unflatten(0, (count, size)).transpose(1, 2) for part in (query, key, value))
            parts.append(attention(*window).transpose(1, 2).flatten(0, 1).flatten(1))
            first = last
        by_rows(layer.out, torch.cat(parts) if len(parts) > 1 else parts[0], states)
        by_rows(layer.mlp, states, states)
        return states


def _layer(block: Any, packer: Packer) -> Layer:
    return Layer(
        attention_norm=RMSNorm(packer.tensor(block.norm1.weight), EPS),
        qkv=packer.linear(block.attn.qkv),
        out=packer.linear(block.attn.proj),
        mlp_norm=RMSNorm(packer.tensor(block.norm2.weight), EPS),
        gate_up=packer.linear(block.mlp.gate_proj, block.mlp.up_proj),
        down=packer.linear(block.mlp.down_proj),
    )


def window_order(frames: int, rows: int, columns: int, window: int) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """The image tokens window by window, a frame's windows of like size together: each token's old place, and
    (windows, tokens of each) one after another.

    Attention doesn't ask in which order its rows stand, so any order will do in which a window's stand together.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = row // window * -(-columns // window) + column // window
    sizes = np.bincount(number)
    order = np.lexsort((number, sizes[number]))
    kinds, counts = np.unique(sizes, return_counts=True)
    windows = [(int(count), int(size)) for size, count in zip(kinds, counts, strict=True)]
    return np.concatenate([order + frame * len(order) for frame in range(frames)]), windows * frames
