"""Checkpoints with random weights, for tests that do not depend on the weights' values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from models.moondream.config import (
    MoondreamConfig,
    RegionConfig,
    Template,
    TextConfig,
    TokenizerConfig,
    VisionConfig,
)
from models.moondream.model import tensor_shapes
from testing.tokenizers import byte_tokenizer
from training import qwen2_5_vl_checkpoint
from training.smolvlm_checkpoint import (
    pocket_config,
    pocket_image_processor,
    pocket_tokenizer,
    save_pocket,
)

SLOW_MLP = 4096
"""Width of the MLPs of :func:`slow_smolvlm`: a token takes some milliseconds of one core."""


def slow_smolvlm(folder: Path) -> Path:
    """Write a random SmolVLM whose long answers take seconds, however fast the kernels are."""
    return random_smolvlm(folder, mlp_width=SLOW_MLP)


def random_smolvlm(
    folder: Path, seed: int = 0, scale: float = 1.0, mlp_width: int | None = None
) -> Path:
    """Write a pocket-sized SmolVLM, which rarely ends an answer by itself.

    ``scale`` widens the initial weights, so that the answers vary. ``mlp_width`` is that of the
    text model's MLPs, the pocket model's by default.
    """
    torch.manual_seed(seed)
    tokenizer = pocket_tokenizer()
    config = pocket_config(tokenizer)
    config.text_config.intermediate_size = mlp_width or config.text_config.intermediate_size
    model = SmolVLMForConditionalGeneration(config)
    _widen(model, scale)
    save_pocket(folder, model, tokenizer)
    return folder


def random_first_generation(folder: Path) -> Path:
    """Write a random SmolVLM in the format of the first published checkpoints: Idefics3."""
    tokenizer = pocket_tokenizer()
    config = pocket_config(tokenizer)
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            image_token_id=config.image_token_id,
            scale_factor=config.scale_factor,
            tie_word_embeddings=True,
            vision_config={**config.vision_config.to_dict(), "model_type": "idefics3_vision"},
            text_config=config.text_config.to_dict(),
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stock = pocket_image_processor()
    Idefics3ImageProcessorPil(
        size={"longest_edge": stock.size["longest_edge"]},
        max_image_size={"longest_edge": stock.max_image_size["longest_edge"]},
        image_mean=stock.image_mean,
        image_std=stock.image_std,
    ).save_pretrained(folder)
    return folder


def random_qwen2_5_vl(folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Write a pocket-sized Qwen2.5-VL; see :func:`random_smolvlm`."""
    torch.manual_seed(seed)
    tokenizer = qwen2_5_vl_checkpoint.pocket_tokenizer()
    model = Qwen2_5_VLForConditionalGeneration(qwen2_5_vl_checkpoint.pocket_config(tokenizer))
    _widen(model, scale)
    qwen2_5_vl_checkpoint.save_pocket(folder, model, tokenizer)
    return folder


def _widen(model: torch.nn.Module, scale: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)


MOONDREAM_TOKENS = TokenizerConfig(
    caption={
        "short": (1, 200, 2, 201, 3),
        "normal": (1, 200, 2, 202, 3),
        "long": (1, 200, 2, 203, 3),
    },
    query=Template((1, 204, 2), (3,)),
    detect=Template((1, 205, 206, 2), (3,)),
    point=Template((1, 207, 2), (3,)),
)
MOONDREAMS = {
    "2b": MoondreamConfig(
        TextConfig(dim=128, ff_dim=256, n_layers=3, vocab_size=300, n_heads=2, n_kv_heads=2),
        VisionConfig(
            enc_dim=48,
            enc_n_layers=2,
            enc_ff_dim=80,
            enc_n_heads=2,
            proj_out_dim=128,
            crop_size=70,
            overlap_margin=1,
            proj_inner_dim=96,
        ),
        RegionConfig(
            dim=128,
            coord_feat_dim=16,
            coord_out_dim=64,
            size_feat_dim=32,
            size_out_dim=128,
            inner_dim=64,
        ),
        MOONDREAM_TOKENS,
    ),
    "0.5b": MoondreamConfig(
        TextConfig(dim=192, ff_dim=160, n_layers=2, vocab_size=300, n_heads=3, n_kv_heads=3),
        VisionConfig(
            enc_dim=40,
            enc_n_layers=3,
            enc_ff_dim=56,
            enc_n_heads=5,
            proj_out_dim=192,
            crop_size=98,
            max_crops=6,
            overlap_margin=2,
            proj_inner_dim=64,
        ),
        RegionConfig(
            dim=192,
            coord_feat_dim=8,
            coord_out_dim=128,
            size_feat_dim=16,
            size_out_dim=96,
            inner_dim=80,
        ),
        MOONDREAM_TOKENS,
    ),
}
"""Moondream's two configurations, scaled down."""
FREQUENT_TOKENS_BIAS = np.array([4, 0, 0, 3, 0, 8, 0, 5, 0, 5], np.float32)
"""Added to the first tokens' biases, so that answers end and reasoning points at something."""


def random_moondream(
    folder: Path, config: MoondreamConfig = MOONDREAMS["2b"], seed: int = 0
) -> Path:
    """Write a Moondream with random weights, the same on every machine. Its tokens are bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(tensor_shapes(config), seed), folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": "moondream1", "config": config.to_dict()})
    )
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Return random weights of a Moondream, the same on every machine."""
    rng = np.random.default_rng(seed)
    return {name: _noise(name, shape, rng) for name, shape in shapes.items()}


def _noise(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    values = rng.standard_normal(shape, np.float32)
    if name == "text.lm_head.bias":
        values[:10] += FREQUENT_TOKENS_BIAS
        return values
    if name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
        values = 1 + values / np.float32(10)
    elif len(shape) == 1:
        values /= 10
    elif "features" not in name:
        values *= np.float32(2 / np.sqrt(shape[-1]))
    return values
