"""Qwen2.5-VL against plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.options import LoadOptions
from models.qwen2_5_vl.model import Patches, Qwen2_5_VL
from models.verify.reference import VerifiableModel
from models.verify.stock import load_strictly
from raylens.engine.model import Prompt


def reference(checkpoint: str, options: LoadOptions, reference: Path | None) -> VerifiableModel:
    """See :class:`models.verify.reference.Verifier`."""
    return load_strictly(checkpoint, options, Qwen2_5_VL, generate_inputs)


def generate_inputs(model: Qwen2_5_VL, prompt: Prompt) -> dict[str, Tensor]:
    """Return a prompt's pictures and videos as ``generate`` of the stock model takes them."""
    ids = torch.tensor([prompt.token_ids], device=model.device)
    token_types = (ids == model.image_id).int() + 2 * (ids == model._video_id).int()
    inputs = {"mm_token_type_ids": token_types}
    patches: list[Patches] = [picture.data for picture in prompt.pictures]
    images = [picture for picture in patches if not picture.seconds_per_frame]
    videos = [picture for picture in patches if picture.seconds_per_frame]
    if images:
        inputs["pixel_values"] = _pixel_values(model, images)
        inputs["image_grid_thw"] = _grids(model, images)
    if videos:
        seconds = [video.seconds_per_frame for video in videos]
        inputs["pixel_values_videos"] = _pixel_values(model, videos)
        inputs["video_grid_thw"] = _grids(model, videos)
        inputs["second_per_grid_ts"] = torch.tensor(seconds, device=model.device)
    return inputs


def _pixel_values(model: Qwen2_5_VL, pictures: Sequence[Patches]) -> Tensor:
    pixels = torch.cat([model.normalize_patches(picture) for picture in pictures])
    return pixels.to(model.kv_spec.dtype)


def _grids(model: Qwen2_5_VL, pictures: Sequence[Patches]) -> Tensor:
    """Return (frames, rows, columns) of patches, (pictures, 3)."""
    grids = [(p.grid.frames, p.grid.rows, p.grid.columns) for p in pictures]
    return torch.tensor(grids, device=model.device)
