"""The models to measure: random weights in the shapes of published checkpoints, or in tiny
shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.engine.checkpoint import (
    QWEN2_5_VL_3B,
    QWEN2_5_VL_7B,
    SHAPES,
    SMOLVLM2_2B,
    Shape,
    assemble,
    widen_tokenizer,
)
from benchmarks.engine.limits import TextShape, VisionShape, Work
from benchmarks.moondream import compute_shapes, projector_weights, random_weights
from models.linear import WeightPacker
from models.moondream.config import MoondreamConfig, RegionConfig, TextConfig, VisionConfig
from models.moondream.crops import Crops
from models.moondream.model import Moondream
from models.moondream.weights import Weights
from models.options import LoadOptions
from raylens.engine.model import Model, PictureInput, Prompt
from training import moondream_checkpoint

DTYPE = torch.bfloat16
FAMILY_BY_MODEL = {
    "qwen2.5-vl-7b": "qwen2_5_vl",
    "moondream2": "moondream",
    "qwen2.5-vl-3b": "qwen2_5_vl",
    "smolvlm2-2.2b": "smolvlm",
}
"""Family of each model, in the order of measurement."""
CHAT_SHAPES: dict[tuple[str, str], Shape] = {
    ("qwen2.5-vl-7b", "full"): QWEN2_5_VL_7B,
    ("qwen2.5-vl-3b", "full"): QWEN2_5_VL_3B,
    ("smolvlm2-2.2b", "full"): SMOLVLM2_2B,
    ("qwen2.5-vl-7b", "tiny"): SHAPES["qwen2_5_vl", "tiny"],
    ("qwen2.5-vl-3b", "tiny"): SHAPES["qwen2_5_vl", "tiny"],
    ("smolvlm2-2.2b", "tiny"): SHAPES["smolvlm", "tiny"],
}
"""Shapes by model and scale."""
MOONDREAM_CONFIGS = {
    "full": MoondreamConfig(),
    "tiny": MoondreamConfig(
        TextConfig(dim=64, ff_dim=128, n_layers=2, vocab_size=2048, n_heads=2, n_kv_heads=2),
        VisionConfig(
            enc_dim=32,
            enc_n_layers=2,
            enc_ff_dim=64,
            enc_n_heads=2,
            proj_out_dim=64,
            crop_size=126,
            overlap_margin=1,
            proj_inner_dim=64,
        ),
        RegionConfig(dim=64, inner_dim=64),
        moondream_checkpoint.pocket_config(moondream_checkpoint.pocket_tokenizer()).tokenizer,
    ),
}
"""Configurations by scale. ``full`` is Moondream 2."""
UNTIED = {"tie_word_embeddings": False}
"""A random model whose head shares its embeddings repeats its prompt's last token forever. Untied
weights cost the same work."""
NEVER = -100.0
"""A logit that is never the best."""


@dataclass(frozen=True)
class Subject:
    """A model, and the shapes that its limits are computed from."""

    name: str
    model: Model
    text: TextShape
    vision_work: Callable[[Sequence[PictureInput]], Work]
    """Returns the least work from pictures to their features."""
    reference: Any = None
    """transformers' modules with the same weights, if they are kept."""

    def least_work(self, prompt: Prompt, tokens: int, batch: int) -> Work:
        """Return the least work of an answer of ``tokens`` tokens, if decode steps have ``batch``
        rows."""
        length = len(prompt.token_ids)
        return (
            self.vision_work(prompt.pictures)
            + self.text.prefill(length)
            + self.text.answer(length, tokens, batch)
        )


def build(name: str, scale: str, device: str, reference: bool = False) -> Subject:
    """Build a model whose answers end only at their token limit.

    Every token that it generates has text of its own, so that each arrives as one piece.
    ``reference`` keeps transformers' modules.
    """
    if FAMILY_BY_MODEL[name] == "moondream":
        return _build_moondream(name, MOONDREAM_CONFIGS[scale], device)
    shape = CHAT_SHAPES[name, scale]
    untied = replace(shape, config=shape.config | UNTIED, text=shape.text | UNTIED)
    checkpoint = assemble(FAMILY_BY_MODEL[name], untied, DTYPE, device)
    config = checkpoint.model.config
    with torch.no_grad():
        checkpoint.model.lm_head.weight[_excluded_tokens(checkpoint.tokenizer)] = 0
    model = checkpoint.load(LoadOptions(dtype=DTYPE, device=device, free_modules=not reference))
    vision = VisionShape.from_config(config)

    def vision_work(pictures: Sequence[PictureInput]) -> Work:
        work = Work(vision.work(0, DTYPE.itemsize).bytes if pictures else 0.0)
        for picture in pictures:
            work += vision.work(picture.num_tokens, 0)
        return work

    text = TextShape.from_config(config, DTYPE.itemsize, model.kv_spec)
    return Subject(name, model, text, vision_work, checkpoint.model if reference else None)


def _excluded_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return all token ids except those of the words that ``widen_tokenizer`` adds."""
    return [
        number for token, number in tokenizer.get_vocab().items() if not token.startswith("Ġword")
    ]


def _build_moondream(name: str, config: MoondreamConfig, device: str) -> Subject:
    tensors = random_weights(config, device)
    tokenizer = widen_tokenizer(moondream_checkpoint.pocket_tokenizer(), config.text.vocab_size)
    excluded = _excluded_tokens(tokenizer)
    tensors["text.lm_head.weight"][excluded] = 0.0
    tensors["text.lm_head.bias"][excluded] = NEVER
    weights = Weights(tensors, tensors.__getitem__, WeightPacker(device), DTYPE)
    options = LoadOptions(dtype=DTYPE, device=device)
    model = Moondream(config, weights, tokenizer.backend_tokenizer, options)
    vision, text = compute_shapes(config, DTYPE.itemsize, model.kv_spec.bytes_per_token)
    projector = projector_weights(config)

    def vision_work(pictures: Sequence[PictureInput]) -> Work:
        """Return the work of the crops, and of projecting the stitched features."""
        work = Work()
        for picture in pictures:
            assert isinstance(picture.data, Crops)
            crop = vision.work(picture.num_tokens, DTYPE.itemsize)
            work += Work(crop.bytes, crop.operations * len(picture.data.pixels))
            work += Work(projector * DTYPE.itemsize, 2.0 * picture.num_tokens * projector)
        return work

    return Subject(name, model, text, vision_work)
