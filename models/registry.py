"""Loads models by their family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from models.options import LoadOptions
from raylens.core.config import ModelConfig
from raylens.core.families import family_named, load_attribute
from raylens.engine.model import Model


def load_model(config: ModelConfig) -> Model:
    """Load a model as its configuration says. Raises ``OSError`` if there is no such checkpoint."""
    assert config.family is not None, "a model without a family has a server"
    family = family_named(config.family)
    is_pocket = config.checkpoint == "pocket"
    checkpoint = str(pocket_folder(family.name)) if is_pocket else config.checkpoint
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


def pocket_folder(family: str) -> Path:
    """Return the folder of the family's bundled checkpoint. Raises ``OSError`` if it has none."""
    folder = family_named(family).pocket
    if folder is None:
        raise OSError(f"the family {family} has no pocket checkpoint")
    return folder


def pick_device(device: str) -> str:
    """Resolve ``auto``: CUDA if this process sees a GPU. Ray shows a replica its own GPUs only."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
