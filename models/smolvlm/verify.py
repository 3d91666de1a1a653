"""SmolVLM against plain transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from models.operations import normalize_pixels
from models.options import LoadOptions
from models.smolvlm.model import SmolVLM
from models.verify.reference import VerifiableModel
from models.verify.stock import load_strictly
from raylens.engine.model import Prompt


def reference(checkpoint: str, options: LoadOptions, reference: Path | None) -> VerifiableModel:
    """See :class:`models.verify.reference.Verifier`."""
    return load_strictly(checkpoint, options, SmolVLM, generate_inputs)


def generate_inputs(model: SmolVLM, prompt: Prompt) -> dict[str, Tensor]:
    """Return a prompt's tiles as ``generate`` of the stock model takes them."""
    if not prompt.pictures:
        return {}
    tiles = torch.stack([torch.from_numpy(picture.data) for picture in prompt.pictures])
    pixels = normalize_pixels(tiles[None].to(model.device), *model.normalization)
    return {"pixel_values": pixels.to(model.kv_spec.dtype)}
