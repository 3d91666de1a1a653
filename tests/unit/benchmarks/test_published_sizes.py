"""The sizes of published models, which docs/cluster.md tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.engine.checkpoint import (
    QWEN2_5_VL_3B,
    QWEN2_5_VL_7B,
    SMOLVLM2_2B,
    SMOLVLM2_500M,
    make_config,
)
from models.moondream.config import MoondreamConfig
from models.sizing import Footprint, read_footprint
from raylens.cli.size import size_rows

ROOT = Path(__file__).parents[3]
GPUS = (24.0, 80.0)
BATCH, TOKENS = 16, 2048
UNTIED = {"tie_word_embeddings": False}
CHAT_MODELS = {
    "SmolVLM2-500M": (
        "smolvlm",
        replace(SMOLVLM2_500M, config=UNTIED, text=SMOLVLM2_500M.text | UNTIED),
    ),
    "SmolVLM2-2.2B": ("smolvlm", SMOLVLM2_2B),
    "Qwen2.5-VL-3B": ("qwen2_5_vl", QWEN2_5_VL_3B),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", QWEN2_5_VL_7B),
}
"""The published shapes."""
PUBLISHED_BILLIONS = {
    "Moondream 2": 1.93,
    "SmolVLM2-500M": 0.51,
    "SmolVLM2-2.2B": 2.25,
    "Qwen2.5-VL-3B": 3.75,
    "Qwen2.5-VL-7B": 8.29,
}
"""Parameters by the models' pages on the hub."""


def read_published(name: str, folder: Path) -> Footprint:
    """Return a published model's footprint, from a configuration in ``folder``."""
    if name == "Moondream 2":
        config = {"model_type": "moondream1", "config": MoondreamConfig().to_dict()}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        make_config(*CHAT_MODELS[name])[1].save_pretrained(folder)
    return read_footprint(str(folder))


@pytest.mark.parametrize("name", list(PUBLISHED_BILLIONS))
def test_the_docs_tell_the_sizes_of_published_models(name: str, tmp_path: Path) -> None:
    footprint = read_published(name, tmp_path)
    assert round(footprint.parameters / 1e9, 2) == PUBLISHED_BILLIONS[name]
    docs = (ROOT / "docs" / "cluster.md").read_text()
    for row in size_rows(footprint, GPUS, BATCH, TOKENS):
        assert f"| {' | '.join([name, *row])} |" in docs
