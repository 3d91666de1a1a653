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
from models.operations import by_rows, turn
from models.spans import SpanAttention
from raylens.engine.transfer import upload

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

    def slices(self, pixels: Tensor, grids: Sequence[Grid], work: int) -> Generator[None, None, list[Tensor]]:
        """Image tokens (tokens, hidden) of each picture, from the patches (patches, values) of all of them, ``work``
        patches times layers at a time."""
        order, windows, wholes = self._layout(grids, pixels)
        with torch.inference_mode():
            index = upload(order, pixels.device)
            states = self._in_order(self._patches(pixels), index)
            cos, sin = self._turns(grids, index)
        layers = max(1, work // len(states))
        for first in range(0, len(self._layers), layers):
            if first:
                yield
            with torch.inference_mode():
                for number in range(first, min(first + layers, len(self._layers))):
                    states = self._block(number, states, cos, sin, wholes if number in self._whole else windows)
        with torch.inference_mode():
            merged = self._norm(states).view(len(order), -1)
            tokens = self._contract(F.gelu(self._expand(merged)))[upload(np.argsort(order), pixels.device)]
            # Copies: a part of a tensor would keep the whole of it alive, for as long as one picture is kept.
            parts = tokens.split([grid.patches // self._merge**2 for grid in grids])
            return [part.clone() for part in parts] if len(parts) > 1 else [tokens]

    def _layout(self, grids: Sequence[Grid], pixels: Tensor) -> tuple[NDArray[np.int64], SpanAttention, SpanAttention]:
        """The image tokens' order, and attention within windows and within frames."""
        orders: list[NDArray[np.int64]] = []
        windows: list[tuple[int, int]] = []
        for grid in grids:
            first = sum(map(len, orders))
            rows, columns = grid.rows // self._merge, grid.columns // self._merge
            order, sizes = window_order(grid.frames, rows, columns, self._window)
            orders.append(first + order)
            windows += [(count, size * self._merge**2) for count, size in sizes]
        frames = [(grid.frames, grid.rows * grid.columns) for grid in grids]
        dtype = self._norm.weight.dtype
        within = [SpanAttention(spans, pixels.device, dtype, self._head_dim) for spans in (windows, frames)]
        return np.concatenate(orders), within[0], within[1]

    def _in_order(self, states: Tensor, index: Tensor) -> Tensor:
        """Rows that belong to image tokens, ``merge`` × ``merge`` each, in the tokens' new order."""
        return states.view(len(index), self._merge**2, -1)[index].flatten(0, 1)

    def _turns(self, grids: Sequence[Grid], index: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (patches, 1, head size), float32: half of the frequencies turn with the row."""
        places = upload(np.concatenate([self._places(grid) for grid in grids]), index.device)
        angles = self._in_order((places[:, :, None] * self._frequencies).flatten(1), index)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]

    def _places(self, grid: Grid) -> NDArray[np.float32]:
        """Row and column of each patch (patches, 2)."""
        rows, columns, merge = grid.rows // self._merge, grid.columns // self._merge, self._merge
        _, row, column, inner_row, inner_column = np.unravel_index(
            np.arange(grid.patches), (grid.frames, rows, columns, merge, merge)
        )
        return np.stack([row * merge + inner_row, column * merge + inner_column], -1).astype(np.float32)

    def _block(self, index: int, states: Tensor, cos: Tensor, sin: Tensor, attend: SpanAttention) -> Tensor:
        layer = self._layers[index]
        mixed = layer.qkv(layer.attention_norm(states)).unflatten(-1, (3, self._heads, self._head_dim))
        query, key, value = mixed.unbind(1)
        # Turned in float32, as in the stock tower.
        query, key = (turn(part.float(), cos, sin).to(value.dtype) for part in (query, key))
        by_rows(layer.out, attend(query, key, value).flatten(1), states)
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
