"""Loads models by their family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from models.options import LoadOptions
from raylens.core.config import ModelConfig
from raylens.core.families import Family, families, family_named, load_attribute
from raylens.engine.model import Model

POCKET = Path(__file__).parent / "pocket"
FAMILIES = tuple(families())


def load_model(config: ModelConfig) -> Model:
    """Load a model as its configuration says. Raises ``OSError`` if there is no such checkpoint."""
    assert config.family is not None, "a model without a family has a server"
    family = family_named(config.family)
    checkpoint = checkpoint_path(config.checkpoint, family)
    load: Callable[[str, LoadOptions], Model] = load_attribute(family.load)
    options = LoadOptions(
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        device=pick_device(config.device),
        tiles_per_step=config.max_tiles_per_step,
        quantize=config.quantize,
        cuda_graphs=config.cuda_graphs,
        settings=config.family_settings,
    )
    try:
        return load(checkpoint, options)
    except OSError as error:
        raise OSError(f"{config.name}: loading {checkpoint!r} failed: {error}") from error


def checkpoint_path(checkpoint: str, family: Family) -> str:
    """Return a hub id or a folder. ``pocket`` means the family's bundled checkpoint.

    Raises ``OSError`` if the family has none.
    """
    if checkpoint != "pocket":
        return checkpoint
    if family.pocket is None:
        raise OSError(f"the family {family.name} has no pocket checkpoint")
    return str(family.pocket)


def pick_device(device: str) -> str:
    """Resolve ``auto``: CUDA if this process sees a GPU. Ray shows a replica its own GPUs only."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
