"""``raylens size``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from models import memory
from models.registry import load_model, pocket_folder
from models.sizing import Footprint, needed_gpu_bytes, read_footprint
from raylens.cli.main import app
from raylens.cli.size import size_rows
from raylens.core.config import ModelConfig
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import KVSpec

BATCH = 16


@pytest.mark.parametrize("family", ["moondream", "smolvlm", "qwen2_5_vl"])
def test_the_footprint_is_that_of_the_loaded_model(family: str) -> None:
    model = load_model(ModelConfig(name="m", family=family, checkpoint="pocket"))
    footprint = read_footprint(str(pocket_folder(family)))
    assert footprint.parameters == model.parameters
    assert footprint.kv_values_per_token * 4 == model.kv_spec.bytes_per_token


@pytest.mark.parametrize("tokens", [1100, 2048, 2100])
def test_the_share_holds_the_whole_batch(tokens: int) -> None:
    footprint, gpu_bytes, caches = Footprint(3_000_000_000, 36_864), 24 * 2**30, 384 * 2**20
    needed = needed_gpu_bytes(footprint, 2, BATCH, tokens, caches)
    share = memory.share_bytes(gpu_bytes, needed / gpu_bytes)
    budget = memory.remaining_bytes(share + 1, 2 * footprint.parameters, caches)
    spec = KVSpec(36, 2, 256, torch.bfloat16, "cpu")
    cache: KVCache[int] = KVCache(spec, budget, BATCH)
    assert spec.bytes_per_token == 2 * footprint.kv_values_per_token
    assert cache.cost(tokens) * BATCH <= budget < cache.cost(tokens) * BATCH + 2**20


def test_a_gpu_that_is_too_small_is_told_what_is_needed() -> None:
    parameters = int(0.8 * (24.3 - 1 - 0.5) * 2**30 / 2)
    row, _ = size_rows(Footprint(parameters, 1), [24.0, 80.0], 1, 128)
    assert row[-4:-2] == ["needs 25 GiB", "0"]


def test_the_command_prints_a_table() -> None:
    folder = str(pocket_folder("smolvlm"))
    result = CliRunner().invoke(app, ["size", folder, "--gpu", "8", "--batch", "4"])
    assert result.exit_code == 0
    assert "4 answers of 2048 tokens" in result.output
    assert "bfloat16" in result.output


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "No such file"),
        ({"model_type": "bert"}, "unknown model_type 'bert'; known: "),
        ({"model_type": ["a"]}, "unknown model_type ['a']; known: "),
        ([], "unknown model_type None; known: "),
        (
            {"model_type": "qwen2_5_vl", "text_config": {"num_attention_heads": 0}},
            "its configuration can't be read: ",
        ),
        ({"model_type": "moondream1", "config": {"text": 1}}, "its configuration can't be read: "),
    ],
)
def test_a_checkpoint_that_is_unknown_is_an_error(
    tmp_path: Path, config: Any, message: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["size", str(tmp_path)])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
