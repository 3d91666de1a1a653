from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from models.registry import pocket_folder
from models.verify.questions import normalize_text
from models.verify.reference import Unverifiable
from models.verify.run import verify
from raylens.cli.main import app
from testing.checkpoints import random_moondream, random_smolvlm


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_a_checkpoint_that_answers_as_plain_transformers_is_verified(family: str) -> None:
    report = verify(str(pocket_folder(family)))
    assert report.verified
    assert all(line.is_same for line in report.lines)
    assert all(line.answer == line.reference for line in report.lines if "[" not in line.answer)
    right = [line.is_right for line in report.lines if line.is_right is not None]
    assert sum(right) >= len(right) - 1


def test_without_a_reference_a_model_that_sees_nothing_is_not_verified(tmp_path: Path) -> None:
    report = verify(str(random_moondream(tmp_path)))
    assert {line.is_same for line in report.lines} == {None}
    assert not report.verified


def test_a_default_penalty_of_the_checkpoint_is_ignored(tmp_path: Path) -> None:
    shutil.copytree(pocket_folder("smolvlm"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 5.0}))
    assert verify(str(tmp_path)).verified


def test_answers_that_differ_in_control_characters_only_are_equal() -> None:
    assert normalize_text("\x00two  red\x1b circles\n") == normalize_text("two red\x9dcircles")
    assert normalize_text("two red circles") != normalize_text("two red circle")


def test_a_reference_that_is_not_a_checkout_is_refused(tmp_path: Path) -> None:
    random_moondream(tmp_path / "checkpoint")
    result = CliRunner().invoke(
        app, ["verify", str(tmp_path / "checkpoint"), "--reference", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert "not a checkout of vikhyat/moondream" in result.stderr


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = random_smolvlm(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    gone = tensors.pop(next(name for name in tensors if "layers.0" in name))
    save_file({**tensors, "spare": gone}, weights, {"format": "pt"})
    with pytest.raises(Unverifiable, match=r"missing tensors: .*layers\.0"):
        verify(str(tmp_path))


def test_a_family_that_is_not_known_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 2
    assert "unknown model_type 'bert'" in result.stderr


def test_the_command_prints_a_table_and_the_verdict() -> None:
    result = CliRunner().invoke(app, ["verify", str(pocket_folder("smolvlm"))])
    assert result.exit_code == 0
    assert "What color" in result.stdout
    assert result.stdout.rstrip().endswith("verified")
