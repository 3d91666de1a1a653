"""Random weights in the shapes of published checkpoints, with the pocket tokenizers.

Nothing is downloaded. No answer ends before its token limit: the control tokens' rows in the
embeddings and in the head are zero, which makes their logits zero, and the best of many thousands
of random logits is above zero.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from models.options import LoadOptions
from models.qwen2_5_vl.model import Qwen2_5_VL
from models.smolvlm.model import SmolVLM
from raylens.engine.model import Model
from training import qwen2_5_vl_checkpoint, smolvlm_checkpoint

TRANSFORMERS_CLASSES = {
    "smolvlm": SmolVLMForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}
"""transformers' own model classes, by family."""


@dataclass(frozen=True)
class Shape:
    """Shape of a published checkpoint, as changes to the pocket checkpoint of its family."""

    tile: int
    """Side in pixels of a picture of one tile or, in a family without tiles, of a picture at
    ``detail: low``."""
    vocabulary: int
    vision: dict[str, Any]
    text: dict[str, Any]
    processor: dict[str, Any]
    tiles_per_side: int = 1
    config: dict[str, Any] = field(default_factory=dict)
    """Top-level fields of the configuration."""


SMOLVLM2_500M = Shape(
    tile=512,
    tiles_per_side=4,
    vocabulary=49280,
    vision={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
    text={
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    processor={"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
)
QWEN2_5_VL_3B = Shape(
    tile=448,
    vocabulary=151_936,
    vision={
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    text={
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 128_000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": [16, 24, 24],
        },
    },
    processor={"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16_384}},
)
SMOLVLM2_2B = Shape(
    tile=384,
    tiles_per_side=4,
    vocabulary=49280,
    vision={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    text={
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 130_000.0},
        "tie_word_embeddings": False,
    },
    processor={"size": {"longest_edge": 4 * 384}, "max_image_size": {"longest_edge": 384}},
    config={"scale_factor": 3, "tie_word_embeddings": False},
)
QWEN2_5_VL_7B = replace(
    QWEN2_5_VL_3B,
    vocabulary=152_064,
    vision=QWEN2_5_VL_3B.vision | {"out_hidden_size": 3584},
    text=QWEN2_5_VL_3B.text
    | {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    config={"tie_word_embeddings": False},
)
SHAPES = {
    ("smolvlm", "full"): SMOLVLM2_500M,
    ("qwen2_5_vl", "full"): QWEN2_5_VL_3B,
    ("smolvlm", "tiny"): Shape(192, 2048, {}, {}, {}, tiles_per_side=2),
    ("qwen2_5_vl", "tiny"): Shape(168, 2048, {}, {}, {}),
}
"""Shapes by family and scale. ``tiny`` is for smoke tests."""


POCKETS: dict[str, Any] = {"smolvlm": smolvlm_checkpoint, "qwen2_5_vl": qwen2_5_vl_checkpoint}
"""Modules of the pocket checkpoints, by family."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in transformers' own modules, with its tokenizer and image processor."""

    family: str
    shape: Shape
    model: Any
    tokenizer: PreTrainedTokenizerFast
    image_processor: Any

    def load(self, options: LoadOptions) -> Model:
        """Return the engine's model with the same weights."""
        model_class = SmolVLM if self.family == "smolvlm" else Qwen2_5_VL
        return model_class(self.model, self.tokenizer, self.image_processor, options)

    def save(self, folder: Path) -> None:
        for part in (self.model, self.tokenizer, self.image_processor):
            part.save_pretrained(folder)


def build(family: str, scale: str, dtype: torch.dtype, device: str) -> Checkpoint:
    """Build the checkpoint of a family at a scale.

    Weights are drawn on the device: every call on the same kind of device gives the same ones.
    """
    return assemble(family, SHAPES[family, scale], dtype, device)


def assemble(family: str, shape: Shape, dtype: torch.dtype, device: str) -> Checkpoint:
    """Build a checkpoint of any shape.

    Weights are drawn on the device: every call on the same kind of device gives the same ones.
    """
    tokenizer, config = make_config(family, shape)
    image_processor = POCKETS[family].pocket_image_processor()
    for name, value in shape.processor.items():
        setattr(image_processor, name, value)
    model = _random_model(TRANSFORMERS_CLASSES[family], config, dtype, device)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.lm_head):
            table.weight[list(tokenizer.get_added_vocab().values())] = 0
    return Checkpoint(family, shape, model, tokenizer, image_processor)


def make_config(family: str, shape: Shape) -> tuple[PreTrainedTokenizerFast, Any]:
    """Return the tokenizer and the configuration of a checkpoint of any shape."""
    tile_tokens = []
    if family == "smolvlm":
        sides = range(1, shape.tiles_per_side + 1)
        tile_tokens = [f"<row_{row}_col_{column}>" for row in sides for column in sides]
    pocket = POCKETS[family]
    tokenizer = widen_tokenizer(pocket.pocket_tokenizer(), shape.vocabulary, tile_tokens)
    fields = pocket.pocket_config(tokenizer).to_dict()
    fields |= shape.config
    fields["vision_config"] |= shape.vision
    fields["text_config"] |= shape.text
    # The pocket configuration lists the types of the pocket model's layers only.
    fields["text_config"].pop("layer_types", None)
    config = (SmolVLMConfig if family == "smolvlm" else Qwen2_5_VLConfig)(**fields)
    return tokenizer, config


def _random_model(model_class: Any, config: Any, dtype: torch.dtype, device: str) -> Any:
    """Create the weights in ``dtype`` on the device, without a float32 copy on the way."""
    torch.manual_seed(0)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(default_dtype)


def widen_tokenizer(
    tokenizer: PreTrainedTokenizerFast, size: int, control_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Return the tokenizer with more control tokens, and ``size`` tokens in all.

    The added words are for answers only: no text is tokenized to them.
    """
    missing = [token for token in control_tokens if token not in tokenizer.get_vocab()]
    state = json.loads(tokenizer._tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    # Tokens that were added to the end of the vocabulary move to its new end.
    last = [token for token in state["added_tokens"] if token["content"] not in vocabulary]
    state["added_tokens"] = [token for token in state["added_tokens"] if token not in last]
    for number in range(len(vocabulary), size - len(missing) - len(last)):
        vocabulary[f"Ġword{number}"] = number
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens(
        [AddedToken(token["content"], special=False, normalized=False) for token in last]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": missing})
    assert len(tokenizer) == size
    return tokenizer
