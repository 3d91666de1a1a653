"""The vision encoder (``modeling_qwen2_5_vl.py`` in transformers)."""

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
from models.graphs import GraphCache
from models.linear import WeightPacker
from models.llama import LlamaLayer
from models.norms import RMSNorm
from models.operations import apply_in_row_blocks, apply_rope
from models.spans import Spans, attend_within
from raylens.engine.transfer import upload

NORM_EPS = 1e-6
_CACHED_LAYOUTS = 32
"""Layouts to cache, because pictures of the same size come again."""


@dataclass(frozen=True)
class Grid:
    """The patches of a picture or video: pairs of frames, rows and columns."""

    frames: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class Layout:
    """The order in which a batch's patches are computed, with their positions and attention
    spans."""

    order: Tensor
    """Index in the pictures of each image token, in window order: int64 (tokens,)."""
    inverse: Tensor
    """The inverse permutation of ``order``."""
    cos: Tensor
    """Cosines of the rotary positions, float32, in window order."""
    sin: Tensor
    windows: Spans
    """Windows, in patches."""
    frames: Spans
    """Whole frames, in patches."""

    @property
    def tensors(self) -> list[Tensor]:
        """The layout's tensors, which a CUDA graph gets anew for each replay."""
        return [
            self.order,
            self.inverse,
            self.cos,
            self.sin,
            self.windows.bounds.cu_seqlens,
            self.frames.bounds.cu_seqlens,
        ]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Layout:
        """Return the same layout, with other :attr:`tensors`."""
        order, inverse, cos, sin, windows, frames = tensors
        return Layout(
            order,
            inverse,
            cos,
            sin,
            self.windows.with_starts(windows),
            self.frames.with_starts(frames),
        )


class VisionEncoder:
    """The vision transformer and the merger behind it.

    Most layers attend within windows, and some within whole frames. The merger makes an image token
    of 2 × 2 patches.
    """

    def __init__(
        self, encoder: Any, packer: WeightPacker, graphs: GraphCache | None = None
    ) -> None:
        config = encoder.config
        self._heads = int(config.num_heads)
        self._head_dim = int(config.hidden_size) // self._heads
        self._merge = int(config.spatial_merge_size)
        self._window = int(config.window_size) // self._merge // int(config.patch_size)
        self._full_attention_layers = frozenset(config.fullatt_block_indexes)
        self._frequencies = packer.to_device(encoder.rotary_pos_emb.inv_freq).float()
        self._embed_patches = packer.pack_weight(encoder.patch_embed.proj.weight.flatten(1))
        self._layers = [_layer(block, packer) for block in encoder.blocks]
        self._norm = RMSNorm(packer.to_device(encoder.merger.ln_q.weight), NORM_EPS)
        self._expand = packer.pack_layers(encoder.merger.mlp[0])
        self._contract = packer.pack_layers(encoder.merger.mlp[2])
        self._has_fused = has_fused_kernels(self._frequencies.device, self._norm.weight.dtype)
        self._graphs = graphs
        self._layout = lru_cache(_CACHED_LAYOUTS)(self._build_layout)

    def encode_in_slices(
        self, pixels: Tensor, grids: Sequence[Grid], slice_size: int
    ) -> Generator[None, None, list[Tensor]]:
        """Encode the patches (patches, values) of a batch of pictures to each picture's image
        tokens (tokens, hidden).

        Yields between slices of ``slice_size`` patches × layers.
        """
        with torch.inference_mode():
            layout = self._layout(tuple(grids))
        # A graph runs all layers at once. For a huge picture, running requests would wait too long.
        fits_slice = len(pixels) * len(self._layers) <= slice_size
        if self._graphs is not None and fits_slice:
            with torch.inference_mode():
                tokens = self._run_graph(self._graphs, pixels, grids, layout)
        else:
            tokens = yield from self._run_in_slices(pixels, layout, slice_size)
        with torch.inference_mode():
            parts = tokens.split([grid.patches // self._merge**2 for grid in grids])
            # Cached parts would keep the whole batch's tensor alive, so each is copied.
            return [part.clone() for part in parts] if len(parts) > 1 else [tokens]

    def _run_in_slices(
        self, pixels: Tensor, layout: Layout, slice_size: int
    ) -> Generator[None, None, Tensor]:
        with torch.inference_mode():
            states = self._reorder(self._embed_patches(pixels), layout.order)
        layers = max(1, slice_size // len(states))
        for first in range(0, len(self._layers), layers):
            if first:
                yield
            end = min(first + layers, len(self._layers))
            with torch.inference_mode():
                states = self._run_layers(range(first, end), states, layout)
        with torch.inference_mode():
            return self._merge_patches(states, layout)

    def _run_graph(
        self, graphs: GraphCache, pixels: Tensor, grids: Sequence[Grid], layout: Layout
    ) -> Tensor:
        key = (VisionEncoder, *grids)
        return graphs.run(key, partial(self._encode, layout), [pixels, *layout.tensors])

    def _encode(self, layout: Layout, pixels: Tensor, *layout_tensors: Tensor) -> Tensor:
        """Run all layers. ``layout_tensors`` replace the layout's own, since a CUDA graph reads
        copies of its inputs."""
        layout = layout.with_tensors(layout_tensors)
        states = self._reorder(self._embed_patches(pixels), layout.order)
        states = self._run_layers(range(len(self._layers)), states, layout)
        return self._merge_patches(states, layout)

    def _run_layers(self, indices: range, states: Tensor, layout: Layout) -> Tensor:
        for index in indices:
            is_full = index in self._full_attention_layers
            spans = layout.frames if is_full else layout.windows
            states = self._run_layer(self._layers[index], states, layout, spans)
        return states

    def _run_layer(self, layer: LlamaLayer, states: Tensor, layout: Layout, spans: Spans) -> Tensor:
        """(patches, hidden) -> the same shape."""
        # (patches, 3, heads, head_dim)
        qkv = layer.qkv(layer.attention_norm(states)).unflatten(
            -1, (3, self._heads, self._head_dim)
        )
        if self._has_fused:
            apply_rope_(qkv.flatten(1, 2), layout.cos, layout.sin, 2 * self._heads)
        query, key, value = qkv.unbind(1)
        if not self._has_fused:  # in float32, as in transformers
            query = apply_rope(query.float(), layout.cos, layout.sin).to(value.dtype)
            key = apply_rope(key.float(), layout.cos, layout.sin).to(value.dtype)
        states = apply_in_row_blocks(
            layer.out, attend_within(spans, query, key, value).flatten(1), states
        )
        return apply_in_row_blocks(layer.mlp, states, states)

    def _merge_patches(self, states: Tensor, layout: Layout) -> Tensor:
        """(patches, hidden) in window order -> (tokens, text hidden) in the pictures' order."""
        merged = self._norm(states).view(len(layout.order), -1)
        return self._contract(F.gelu(self._expand(merged)))[layout.inverse]

    def _build_layout(self, grids: tuple[Grid, ...]) -> Layout:
        orders: list[NDArray[np.int64]] = []
        windows: list[tuple[int, int]] = []
        for grid in grids:
            first = sum(map(len, orders))
            rows = grid.rows // self._merge
            columns = grid.columns // self._merge
            order, groups = window_order(grid.frames, rows, columns, self._window)
            orders.append(first + order)
            windows += [(count, size * self._merge**2) for count, size in groups]
        frames = [(grid.frames, grid.rows * grid.columns) for grid in grids]
        device = self._frequencies.device
        batch_order = np.concatenate(orders)
        index = upload(batch_order, device)
        cos, sin = self._rope_cos_sin(grids, index)
        inverse = upload(np.argsort(batch_order), device)
        return Layout(index, inverse, cos, sin, Spans.of(windows, device), Spans.of(frames, device))

    def _reorder(self, states: Tensor, order: Tensor) -> Tensor:
        """Reorder the image tokens of states (patches, …), ``merge²`` patches each."""
        return states.view(len(order), self._merge**2, -1)[order].flatten(0, 1)

    def _rope_cos_sin(self, grids: Sequence[Grid], order: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines, float32 (patches, 1, head_dim).

        Half of the frequencies rotate with the row, and half with the column. The fused kernel
        takes (patches, head_dim / 2).
        """
        coordinates = np.concatenate([self._patch_coordinates(grid) for grid in grids])
        positions = upload(coordinates, order.device)
        angles = self._reorder((positions[:, :, None] * self._frequencies).flatten(1), order)
        cos = angles.cos()
        sin = angles.sin()
        if self._has_fused:
            return cos, sin
        return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]

    def _patch_coordinates(self, grid: Grid) -> NDArray[np.float32]:
        """Return the row and column of each patch (patches, 2)."""
        merge = self._merge
        shape = (grid.frames, grid.rows // merge, grid.columns // merge, merge, merge)
        _, row, column, inner_row, inner_column = np.unravel_index(np.arange(grid.patches), shape)
        coordinates = np.stack([row * merge + inner_row, column * merge + inner_column], -1)
        return coordinates.astype(np.float32)


def _layer(block: Any, packer: WeightPacker) -> LlamaLayer:
    return LlamaLayer(
        attention_norm=RMSNorm(packer.to_device(block.norm1.weight), NORM_EPS),
        qkv=packer.pack_layers(block.attn.qkv),
        out=packer.pack_layers(block.attn.proj),
        mlp_norm=RMSNorm(packer.to_device(block.norm2.weight), NORM_EPS),
        gate_up=packer.pack_layers(block.mlp.gate_proj, block.mlp.up_proj),
        down=packer.pack_layers(block.mlp.down_proj),
    )


def window_order(
    frames: int, rows: int, columns: int, window: int
) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """Order the image tokens by window, and a frame's windows by size.

    Returns each token's index in the original order, and (windows, tokens in each) of consecutive
    windows of the same size. Attention doesn't depend on the order of its rows, so any order is
    correct that keeps each window's tokens together.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    window_ids = row // window * -(-columns // window) + column // window
    token_counts = np.bincount(window_ids)
    order = np.lexsort((window_ids, token_counts[window_ids]))
    sizes, counts = np.unique(token_counts, return_counts=True)
    groups = [(int(count), int(size)) for size, count in zip(sizes, counts, strict=True)]
    all_frames = np.concatenate([order + frame * len(order) for frame in range(frames)])
    return all_frames, groups * frames
