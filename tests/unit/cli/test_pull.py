"""``raylens pull``, as a process of its own, with a hub on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from models.registry import pocket_folder
from testing.fake_hub import COMMIT, FakeHub, run_hub

ROOT = Path(__file__).parents[3]
LOAD = """
import sys
from models.registry import load_model
from raylens.core.config import ModelConfig
load_model(ModelConfig(name="m", family=sys.argv[1], checkpoint=sys.argv[2]))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """The pocket checkpoints as repositories, with files beside them that nothing loads."""
    repositories = {}
    for family in ("moondream", "smolvlm", "qwen2_5_vl"):
        folder = tmp_path / "hub" / family
        shutil.copytree(pocket_folder(family), folder)
        (folder / "pytorch_model.bin").write_text("a pickle")
        (folder / "onnx").mkdir()
        (folder / "onnx" / "config.json").write_text("{}")
        repositories[f"org/{family}"] = folder
    tokenizer = tmp_path / "hub" / "starmie"
    tokenizer.mkdir()
    (repositories["org/moondream"] / "tokenizer.json").rename(tokenizer / "tokenizer.json")
    repositories["moondream/starmie-v1"] = tokenizer
    with run_hub(FakeHub(repositories)) as running:
        yield running


def run(
    hub: FakeHub, tmp_path: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        **environment,
    }
    return subprocess.run(
        [sys.executable, *command],
        env=variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


def pull(
    hub: FakeHub, tmp_path: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    script = "from raylens.cli.main import app; app()"
    return run(hub, tmp_path, "-c", script, "pull", *arguments, **environment)


@pytest.mark.parametrize("family", ["moondream", "smolvlm", "qwen2_5_vl"])
def test_what_was_pulled_loads_offline(hub: FakeHub, tmp_path: Path, family: str) -> None:
    result = pull(hub, tmp_path, f"org/{family}")
    assert result.returncode == 0, result.stderr
    assert not any("bin" in path or "onnx/" in path for path in hub.requests)
    loaded = run(hub, tmp_path, "-c", LOAD, family, f"org/{family}", HF_HUB_OFFLINE="1")
    assert loaded.returncode == 0, loaded.stderr
    hub.requests.clear()
    assert pull(hub, tmp_path, f"org/{family}").returncode == 0
    assert not any("safetensors" in path for path in hub.requests)


def test_a_config_files_models_are_pulled_at_their_revisions(hub: FakeHub, tmp_path: Path) -> None:
    remote = {"base_url": "http://127.0.0.1:1/v1", "model": "d"}
    models = [
        {"name": "a", "family": "moondream", "checkpoint": "org/moondream", "revision": COMMIT},
        {"name": "b", "family": "smolvlm", "checkpoint": "org/smolvlm"},
        {"name": "c", "family": "qwen2_5_vl", "checkpoint": "pocket"},
        {"name": "d", "runtime": "openai", "remote": remote},
    ]
    application = {"import_path": "deployments.app:build_app", "args": {"models": models}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [application]}))
    result = pull(hub, tmp_path, "--config", str(config))
    assert result.returncode == 0, result.stderr
    assert f"a: fetching org/moondream@{COMMIT}" in result.stderr
    assert "a: fetching moondream/starmie-v1" in result.stderr
    assert "b: fetching org/smolvlm" in result.stderr
    assert "c: nothing to fetch: the pocket checkpoints are bundled" in result.stderr
    assert "d: nothing to fetch: the runtime openai loads its own weights" in result.stderr
    hub.requests.clear()
    assert pull(hub, tmp_path, "b", "--config", str(config)).returncode == 0
    assert not any("moondream" in path for path in hub.requests)
    unknown = pull(hub, tmp_path, "x", "--config", str(config))
    assert unknown.returncode == 2
    assert "no model 'x'; known: a, b, c, d" in unknown.stderr


def test_what_needs_no_download_says_so_and_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    for checkpoint in ("pocket", str(pocket_folder("smolvlm"))):
        result = pull(hub, tmp_path, checkpoint)
        assert result.returncode == 0
        assert "nothing to fetch" in result.stderr
    missing = pull(hub, tmp_path, "./gone")
    assert missing.returncode == 2
    assert "there is no ./gone on this machine" in missing.stderr
    assert hub.requests == []


@pytest.mark.parametrize(
    ("checkpoint", "arguments", "message"),
    [
        ("org/none", (), "there is no repository org/none on the hub, or it is private"),
        ("org/smolvlm", ("--revision", "v9"), "org/smolvlm has no revision v9"),
        ("moondream/starmie-v1", (), "moondream/starmie-v1 has no config.json"),
        ("a/b/c", (), "a/b/c"),
    ],
)
def test_what_the_hub_does_not_have_is_a_sentence(
    hub: FakeHub, tmp_path: Path, checkpoint: str, arguments: tuple[str, ...], message: str
) -> None:
    result = pull(hub, tmp_path, checkpoint, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_gated_repository_needs_the_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated = frozenset({"org/smolvlm"})
    refused = pull(hub, tmp_path, "org/smolvlm")
    assert refused.returncode == 2
    assert "org/smolvlm is gated: accept its terms" in refused.stderr
    assert pull(hub, tmp_path, "org/smolvlm", HF_TOKEN=hub.token).returncode == 0


def test_an_unknown_family_or_other_weights_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    folder = hub.repositories["org/smolvlm"]
    (folder / "model.safetensors").unlink()
    result = pull(hub, tmp_path, "org/smolvlm")
    assert result.returncode == 2
    assert "has no safetensors" in result.stderr
    (folder / "config.json").write_text('{"model_type": "bert"}')
    result = pull(hub, tmp_path, "org/smolvlm", HF_HOME=str(tmp_path / "other"))
    assert result.returncode == 2
    assert "unknown model_type 'bert'" in result.stderr


def test_offline_nothing_is_tried(hub: FakeHub, tmp_path: Path) -> None:
    result = pull(hub, tmp_path, "org/smolvlm", HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert hub.requests == []


def test_a_failed_download_may_be_repeated(hub: FakeHub, tmp_path: Path) -> None:
    hub.failing = frozenset({"tokenizer.json"})
    broken = pull(hub, tmp_path, "org/smolvlm")
    assert broken.returncode == 1, broken.stderr
    assert "the same command goes on there" in broken.stderr
    assert "Traceback" not in broken.stderr
    hub.failing = frozenset()
    assert pull(hub, tmp_path, "org/smolvlm").returncode == 0


def test_an_unreachable_hub_is_a_sentence(hub: FakeHub, tmp_path: Path) -> None:
    result = pull(hub, tmp_path, "org/smolvlm", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "the hub can't be reached" in result.stderr
    assert "Traceback" not in result.stderr


def test_arguments_that_say_too_little_are_refused(hub: FakeHub, tmp_path: Path) -> None:
    for arguments in ((), ("--config", str(ROOT / "configs/cpu.yaml"), "--revision", "main")):
        assert pull(hub, tmp_path, *arguments).returncode == 2
