"""How a checkpoint is loaded, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.linear import Quantize

SLICE = 6144
"""Patches times layers of a vision tower that are worked out between two decode steps, for each of
``tiles_per_step``: half of a tile of SmolVLM2's."""

GPU_TILES = 64


@dataclass(frozen=True)
class LoadOptions:
    revision: str | None = None
    tokenizer_revision: str | None = None
    """Of the tokenizer, where a family's lies in a repository of its own."""
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tiles_per_step: int | None = None
    """Tiles that a vision tower of tiles encodes together; for every tower, how large a slice is.
    None is set by the device."""
    quantize: Quantize | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Bounds of a picture's area after resizing, for families with dynamic resolution; None is the
    checkpoint's."""
    cuda_graphs: bool = True
    """On CUDA, replays decode steps, prompts and vision encoders as CUDA graphs."""
    consume: bool = False
    """Gives up the modules' own weights as they are packed; else a model is held twice while it is
    loaded."""

    @property
    def tiles(self) -> int:
        """``tiles_per_step``, on this device."""
        by_device = GPU_TILES if self.device.startswith("cuda") else 1
        return self.tiles_per_step or by_device

    @property
    def slice(self) -> int:
        """Patches times layers of a vision tower that are worked out between two decode steps."""
        return SLICE * self.tiles


DEFAULTS = LoadOptions()
