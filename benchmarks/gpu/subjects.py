"""The models that are measured: random weights in the shapes of published checkpoints, or small
ones."""

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
    widened,
)
from benchmarks.engine.limits import Text, Tower, Work
from benchmarks.moondream import random_weights, shapes_of
from models.linear import Packer
from models.moondream.config import MoondreamConfig, RegionConfig, TextConfig, VisionConfig
from models.moondream.crops import Crops
from models.moondream.model import Moondream
from models.moondream.weights import Weights
from models.options import LoadOptions
from raylens.engine.model import Model, PictureInput, Prompt
from training import moondream_checkpoint

DTYPE = torch.bfloat16
FAMILIES = {
    "qwen2.5-vl-7b": "qwen2_5_vl",
    "moondream2": "moondream",
    "qwen2.5-vl-3b": "qwen2_5_vl",
    "smolvlm2-2.2b": "smolvlm",
}
"""Of each model, the most wanted first."""
CHATS: dict[tuple[str, str], Shape] = {
    ("qwen2.5-vl-7b", "full"): QWEN2_5_VL_7B,
    ("qwen2.5-vl-3b", "full"): QWEN2_5_VL_3B,
    ("smolvlm2-2.2b", "full"): SMOLVLM2_2B,
    ("qwen2.5-vl-7b", "tiny"): SHAPES["qwen2_5_vl", "tiny"],
    ("qwen2.5-vl-3b", "tiny"): SHAPES["qwen2_5_vl", "tiny"],
    ("smolvlm2-2.2b", "tiny"): SHAPES["smolvlm", "tiny"],
}
MOONDREAMS = {
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
"""``full`` is Moondream 2."""
UNTIED = {"tie_word_embeddings": False}
"""A random model whose head is its embeddings says its prompt's last token for ever. The work is
the same."""
NEVER = -100.0
"""A logit that is never the best."""


@dataclass(frozen=True)
class Subject:
    """A model, and what the limits of its work are worked out from."""

    name: str
    model: Model
    text: Text
    seen: Callable[[Sequence[PictureInput]], Work]
    """The least that pictures take up to their features."""
    reference: Any = None
    """The same weights in transformers' modules, if they are kept."""

    def least(self, prompt: Prompt, tokens: int, batch: int) -> Work:
        """The least that an answer of so many tokens takes, where decode steps have ``batch`` rows."""
        length = len(prompt.token_ids)
        return (
            self.seen(prompt.pictures)
            + self.text.prefill(length)
            + self.text.answer(length, tokens, batch)
        )


def build(name: str, scale: str, device: str, reference: bool = False) -> Subject:
    """A model whose answers never end by themselves, and whose every token has text of its own, so
    that its arrival shows; ``reference``: transformers' modules are kept beside it."""
    if FAMILIES[name] == "moondream":
        return _moondream(name, MOONDREAMS[scale], device)
    shape = CHATS[name, scale]
    untied = replace(shape, whole=shape.whole | UNTIED, text=shape.text | UNTIED)
    checkpoint = assemble(FAMILIES[name], untied, DTYPE, device)
    config = checkpoint.model.config
    with torch.no_grad():
        checkpoint.model.lm_head.weight[_unsaid(checkpoint.tokenizer)] = 0
    model = checkpoint.load(LoadOptions(dtype=DTYPE, device=device, consume=not reference))
    tower = Tower.of(config)

    def seen(pictures: Sequence[PictureInput]) -> Work:
        work = Work(tower.work(0, DTYPE.itemsize).bytes if pictures else 0.0)
        for picture in pictures:
            work += tower.work(picture.tokens, 0)
        return work

    text = Text.of(config, DTYPE.itemsize, model.kv_shape)
    return Subject(name, model, text, seen, checkpoint.model if reference else None)


def _unsaid(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """All tokens but the words that ``widened`` adds."""
    return [
        number for token, number in tokenizer.get_vocab().items() if not token.startswith("Ġword")
    ]


def _moondream(name: str, config: MoondreamConfig, device: str) -> Subject:
    weights = random_weights(config, device)
    tokenizer = widened(moondream_checkpoint.pocket_tokenizer(), config.text.vocab_size)
    unsaid = _unsaid(tokenizer)
    weights["text.lm_head.weight"][unsaid], weights["text.lm_head.bias"][unsaid] = 0.0, NEVER
    taken = Weights(weights, weights.__getitem__, Packer(device), DTYPE)
    model = Moondream(
        config, taken, tokenizer.backend_tokenizer, LoadOptions(dtype=DTYPE, device=device)
    )
    tower, text = shapes_of(config, DTYPE.itemsize, model.kv_shape.bytes_per_token)
    vision = config.vision
    projection = vision.proj_inner_dim * (2 * vision.enc_dim + vision.proj_out_dim)

    def seen(pictures: Sequence[PictureInput]) -> Work:
        """Crops, and the projection of what is made of them."""
        work = Work()
        for picture in pictures:
            assert isinstance(picture.data, Crops)
            crop = tower.work(picture.tokens, DTYPE.itemsize)
            work += Work(crop.bytes, crop.operations * len(picture.data.pixels))
            work += Work(projection * DTYPE.itemsize, 2.0 * picture.tokens * projection)
        return work

    return Subject(name, model, text, seen)
