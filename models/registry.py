"""The model families by name, and where their bundled pocket checkpoints lie."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from models.options import LoadOptions
from raylens.core.config import ModelConfig
from raylens.engine.model import Model

FAMILIES = {
    "moondream": "models.moondream.model:load",
    "smolvlm": "models.smolvlm.model:load",
    "qwen2_5_vl": "models.qwen2_5_vl.model:load",
}
"""Family name -> ``module:function``; the function takes a checkpoint and
:class:`models.options.LoadOptions`."""

POCKET = Path(__file__).parent / "pocket"


def load_model(config: ModelConfig) -> Model:
    """Loads a model as its configuration says. Raises ``OSError`` where the checkpoint can't be
    found."""
    module, function = FAMILIES[config.family].split(":")
    load: Callable[..., Model] = getattr(import_module(module), function)
    checkpoint = checkpoint_path(config)
    options = LoadOptions(
        revision=config.revision,
        tokenizer_revision=config.tokenizer_revision,
        dtype=getattr(torch, config.dtype),
        device=pick_device(config.device),
        tiles_per_step=config.max_tiles_per_step,
        quantize=config.quantize,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        cuda_graphs=config.cuda_graphs,
    )
    try:
        return load(checkpoint, options)
    except OSError as error:
        raise OSError(
            f"{config.name}: the checkpoint {checkpoint!r} can't be loaded: {error}"
        ) from error


def checkpoint_path(config: ModelConfig) -> str:
    """A hub id or a folder; ``pocket`` means the family's bundled checkpoint."""
    return str(POCKET / config.family) if config.checkpoint == "pocket" else config.checkpoint


def pick_device(wanted: str) -> str:
    """``auto`` is CUDA where this process sees a GPU: Ray shows a replica only the ones that it
    holds."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
