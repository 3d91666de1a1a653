"""The vision tower (``modeling_qwen2_5_vl.py`` in transformers)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.fused import apply_rope_, has_fused_kernels
from models.graphs import Graphs
from models.linear import Packer
from models.llama import LlamaLayer, RMSNorm
from models.operations import apply_rope, by_rows
from models.spans import Spans, attend_within
from raylens.engine.transfer import upload

EPS = 1e-6
"""Of the norms."""
_KEPT = 32
"""Layouts that are kept: pictures of one size come again."""


@dataclass(frozen=True)
class Grid:
    """Patches of a picture: frames (in pairs), rows, columns."""

    frames: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class Layout:
    """How the patches of some pictures are read."""

    order: Tensor
    """The image tokens window by window (tokens,): each one's place in the pictures."""
    back: Tensor
    """The same the other way round."""
    cos: Tensor
    """Of rotary positions, float32, in the new order."""
    sin: Tensor
    windows: Spans
    """In patches."""
    frames: Spans


class VisionEncoder:
    """The vision tower: windows in most layers, the whole picture in a few, and 2 × 2 patches
    merged to a token."""

    def __init__(self, tower: Any, packer: Packer, graphs: Graphs | None = None) -> None:
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
        self._has_fused = has_fused_kernels(self._frequencies.device, self._norm.weight.dtype)
        self._graphs = graphs
        self._layout = lru_cache(_KEPT)(self._made_layout)

    def slices(
        self, pixels: Tensor, grids: Sequence[Grid], work: int
    ) -> Generator[None, None, list[Tensor]]:
        """Image tokens (tokens, hidden) of each picture, from the patches (patches, values) of all
        of them, ``work`` patches times layers at a time."""
        with torch.inference_mode():
            layout = self._layout(tuple(grids))
        # All layers of a huge picture would be a long wait for running answers.
        fits = len(pixels) * len(self._layers) <= work
        if self._graphs is not None and fits:
            with torch.inference_mode():
                tokens = self._graphs.run(
                    (VisionEncoder, *grids), partial(self._encoded, layout), _given(pixels, layout)
                )
        else:
            tokens = yield from self._sliced(pixels, layout, work)
        with torch.inference_mode():
            # Copies: a part of a tensor would keep the whole of it alive, for as long as one
            # picture is kept.
            parts = tokens.split([grid.patches // self._merge**2 for grid in grids])
            return [part.clone() for part in parts] if len(parts) > 1 else [tokens]

    def _sliced(self, pixels: Tensor, layout: Layout, work: int) -> Generator[None, None, Tensor]:
        with torch.inference_mode():
            states = self._in_order(self._patches(pixels), layout.order)
        layers = max(1, work // len(states))
        for first in range(0, len(self._layers), layers):
            if first:
                yield
            with torch.inference_mode():
                states = self._through(
                    range(first, min(first + layers, len(self._layers))), states, layout
                )
        with torch.inference_mode():
            return self._merged(states, layout)

    def _encoded(self, layout: Layout, pixels: Tensor, *given: Tensor) -> Tensor:
        """All at once; ``given`` stand for the layout's tensors, of which a CUDA graph keeps its
        own."""
        order, back, cos, sin, windows, frames = given
        held = Layout(order, back, cos, sin, layout.windows.at(windows), layout.frames.at(frames))
        states = self._in_order(self._patches(pixels), held.order)
        return self._merged(self._through(range(len(self._layers)), states, held), held)

    def _through(self, layers: range, states: Tensor, layout: Layout) -> Tensor:
        for number in layers:
            spans = layout.frames if number in self._whole else layout.windows
            states = self._block(number, states, layout, spans)
        return states

    def _merged(self, states: Tensor, layout: Layout) -> Tensor:
        merged = self._norm(states).view(len(layout.order), -1)
        return self._contract(F.gelu(self._expand(merged)))[layout.back]

    def _made_layout(self, grids: tuple[Grid, ...]) -> Layout:
        orders: list[NDArray[np.int64]] = []
        windows: list[tuple[int, int]] = []
        for grid in grids:
            first = sum(map(len, orders))
            rows, columns = grid.rows // self._merge, grid.columns // self._merge
            order, sizes = window_order(grid.frames, rows, columns, self._window)
            orders.append(first + order)
            windows += [(count, size * self._merge**2) for count, size in sizes]
        frames = [(grid.frames, grid.rows * grid.columns) for grid in grids]
        device, order = self._frequencies.device, np.concatenate(orders)
        index = upload(order, device)
        cos, sin = self._rope_cos_sin(grids, index)
        back = upload(np.argsort(order), device)
        return Layout(index, back, cos, sin, Spans.of(windows, device), Spans.of(frames, device))

    def _in_order(self, states: Tensor, index: Tensor) -> Tensor:
        """Rows that belong to image tokens, ``merge`` × ``merge`` each, in the tokens' new order."""
        return states.view(len(index), self._merge**2, -1)[index].flatten(0, 1)

    def _rope_cos_sin(self, grids: Sequence[Grid], index: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (patches, 1, head size), float32: half of the frequencies turn
        with the row. For the fused kernel (patches, head size / 2)."""
        places = upload(np.concatenate([self._places(grid) for grid in grids]), index.device)
        angles = self._in_order((places[:, :, None] * self._frequencies).flatten(1), index)
        cos, sin = angles.cos(), angles.sin()
        if self._has_fused:
            return cos, sin
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]

    def _places(self, grid: Grid) -> NDArray[np.float32]:
        """Row and column of each patch (patches, 2)."""
        rows, columns, merge = grid.rows // self._merge, grid.columns // self._merge, self._merge
        _, row, column, inner_row, inner_column = np.unravel_index(
            np.arange(grid.patches), (grid.frames, rows, columns, merge, merge)
        )
        return np.stack([row * merge + inner_row, column * merge + inner_column], -1).astype(
            np.float32
        )

    def _block(self, index: int, states: Tensor, layout: Layout, spans: Spans) -> Tensor:
        layer = self._layers[index]
        mixed = layer.qkv(layer.attention_norm(states)).unflatten(
            -1, (3, self._heads, self._head_dim)
        )
        if self._has_fused:
            apply_rope_(mixed.flatten(1, 2), layout.cos, layout.sin, 2 * self._heads)
        query, key, value = mixed.unbind(1)
        if not self._has_fused:  # turned in float32, as in the stock tower
            query, key = (
                apply_rope(part.float(), layout.cos, layout.sin).to(value.dtype)
                for part in (query, key)
            )
        states = by_rows(layer.out, attend_within(spans, query, key, value).flatten(1), states)
        return by_rows(layer.mlp, states, states)


def _given(pixels: Tensor, layout: Layout) -> list[Tensor]:
    return [
        pixels,
        layout.order,
        layout.back,
        layout.cos,
        layout.sin,
        layout.windows.bounds.cu_seqlens,
        layout.frames.bounds.cu_seqlens,
    ]


def _layer(block: Any, packer: Packer) -> LlamaLayer:
    return LlamaLayer(
        attention_norm=RMSNorm(packer.tensor(block.norm1.weight), EPS),
        qkv=packer.linear(block.attn.qkv),
        out=packer.linear(block.attn.proj),
        mlp_norm=RMSNorm(packer.tensor(block.norm2.weight), EPS),
        gate_up=packer.linear(block.mlp.gate_proj, block.mlp.up_proj),
        down=packer.linear(block.mlp.down_proj),
    )


def window_order(
    frames: int, rows: int, columns: int, window: int
) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """The image tokens window by window, a frame's windows of like size together: each token's old
    place, and (windows, tokens of each) one after another.

    Attention doesn't ask in which order its rows stand, so any order will do in which a window's
    stand together.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    number = row // window * -(-columns // window) + column // window
    sizes = np.bincount(number)
    order = np.lexsort((number, sizes[number]))
    kinds, counts = np.unique(sizes, return_counts=True)
    windows = [(int(count), int(size)) for size, count in zip(kinds, counts, strict=True)]
    return np.concatenate([order + frame * len(order) for frame in range(frames)]), windows * frames
