"""Options for loading a checkpoint of any family."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.linear import Quantize
from raylens.core.families import NO_SETTINGS, FamilySettings, SettingsT

SLICE_SIZE = 6144
"""Patches × layers that a vision encoder computes between two decode steps, for each tile of
``tiles_per_step``. It is half the work of a SmolVLM2 tile."""

GPU_TILES = 64
"""Default of ``tiles_per_step`` on a GPU."""


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded, and how its model runs."""

    revision: str | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tiles_per_step: int | None = None
    """Tiles that a tiled vision encoder computes together. The slice size of every encoder is
    proportional to it. None means the device's default."""
    quantize: Quantize | None = None
    settings: FamilySettings = NO_SETTINGS
    """The family's own settings; the family's defaults if they are of another class."""
    cuda_graphs: bool = True
    """Whether decode steps, prompts and vision encoders are replayed as CUDA graphs, on CUDA."""
    free_modules: bool = False
    """Whether modules lose their own weights once these are packed. Otherwise memory holds a model
    twice while it is loaded."""

    def family_settings(self, settings: type[SettingsT]) -> SettingsT:
        """Return :attr:`settings`, or the defaults of the class ``settings``."""
        return self.settings if isinstance(self.settings, settings) else settings()

    @property
    def tiles_per_batch(self) -> int:
        """``tiles_per_step``, with the device's default."""
        device_default = GPU_TILES if self.device.startswith("cuda") else 1
        return self.tiles_per_step or device_default

    @property
    def slice_size(self) -> int:
        """Patches × layers that a vision encoder computes between two decode steps."""
        return SLICE_SIZE * self.tiles_per_batch


DEFAULTS = LoadOptions()
