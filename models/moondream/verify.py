"""Moondream against its reference implementation, a checkout of vikhyat/moondream."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from models.moondream.model import Moondream, checkpoint_files, load
from models.moondream.moonfile import is_moonfile
from models.operations import normalize_pixels
from models.options import LoadOptions
from models.verify.questions import Question, format_numbers, normalize_text
from models.verify.reference import (
    NO_REFERENCE,
    Answer,
    Comparison,
    Unverifiable,
    VerifiableModel,
)
from models.verify.run import MAX_TOKENS
from raylens.core.types import Caption, Detect, Point, Query

SETTINGS = {"temperature": 0, "max_tokens": MAX_TOKENS}


def reference(checkpoint: str, options: LoadOptions, reference: Path | None) -> VerifiableModel:
    """See :class:`models.verify.reference.Verifier`."""
    model = load(checkpoint, options)
    if reference is None:
        return VerifiableModel(model, lambda question, answer: NO_REFERENCE)
    if is_moonfile(checkpoint):
        raise Unverifiable("the reference doesn't read .mf files")
    weights = load_file(checkpoint_files(checkpoint, options)[1])
    upstream = _Upstream(_import_upstream(reference), model, weights)
    return VerifiableModel(model, upstream.compare)


def _import_upstream(folder: Path) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        import moondream.torch.moondream as upstream
    except ImportError as error:
        raise Unverifiable(f"{folder}: not a checkout of vikhyat/moondream: {error}") from error
    module: ModuleType = upstream
    return module


class _Upstream:
    """The reference implementation in float32, with the checkpoint's weights and our tokenizer."""

    def __init__(self, upstream: ModuleType, model: Moondream, weights: dict[str, Tensor]) -> None:
        from moondream.torch.config import MoondreamConfig

        class OurTokenizer:
            @staticmethod
            def from_pretrained(name: str) -> object:
                return model.tokenizer

        patched: Any = upstream
        patched.Tokenizer = OurTokenizer
        patched.prepare_crops = _prepare_crops
        config = MoondreamConfig.from_dict(_upstream_config(model))
        self._model = upstream.MoondreamModel(config, dtype=torch.float32)
        tensors = {name.removeprefix("model."): tensor.float() for name, tensor in weights.items()}
        self._model.load_state_dict(tensors, strict=False)

    def compare(self, question: Question, answer: Answer) -> Comparison:
        encoded = self._model.encode_image(Image.fromarray(question.picture()))
        match question.task:
            case Caption(length):
                text = self._model.caption(encoded, length.value, settings=SETTINGS)["caption"]
            case Query(words):
                text = self._model.query(encoded, words, settings=SETTINGS)["answer"]
            case Detect(subject):
                boxes = self._model.detect(encoded, subject)["objects"]
                text = format_numbers([tuple(box.values()) for box in boxes])
            case Point(subject):
                points = self._model.point(encoded, subject)["points"]
                text = format_numbers([tuple(point.values()) for point in points])
            case _:
                return NO_REFERENCE
        text = normalize_text(text)
        return Comparison(text, text == answer.text)


def _prepare_crops(image: Image.Image, config: Any, device: Any) -> tuple[Tensor, tuple[int, int]]:
    """Prepare crops in float32; upstream rounds pixels to bfloat16 before it normalizes them."""
    from moondream.torch.image_crops import overlap_crop_image

    cropped = overlap_crop_image(
        np.asarray(image.convert("RGB")),
        max_crops=config.max_crops,
        overlap_margin=config.overlap_margin,
    )
    pixels = torch.from_numpy(cropped["crops"]).permute(0, 3, 1, 2)
    return normalize_pixels(pixels, 1 / 255, (0.5,) * 3, (0.5,) * 3), cropped["tiling"]


def _upstream_config(model: Moondream) -> dict[str, Any]:
    """Return the checkpoint's configuration, with lists of token ids instead of tuples."""
    config: dict[str, Any] = model.config.to_dict()
    config["tokenizer"]["templates"] = {
        name: {part: list(ids) for part, ids in template.items()}
        for name, template in config["tokenizer"]["templates"].items()
    }
    return config
