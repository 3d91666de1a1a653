"""A family that an installed package adds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.engine_runtime import warm_up
from models.registry import load_model
from models.remote.openai import OpenAIRuntime
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig, ModelConfig
from raylens.core.families import families
from raylens.core.types import Query, SamplingParams, VisionRequest
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.sequence import make_sequences

PLUGIN = """
from raylens.core.families import Family, FamilySettings


class EchoSettings(FamilySettings):
    repeat: int = 1


FAMILY = Family(
    name="echo",
    load="echo_family:load",
    tasks=frozenset({"query"}),
    settings=EchoSettings,
    aliases=("parrot",),
)


def load(checkpoint, options):
    from testing.echo_model import EchoModel

    return EchoModel(checkpoint, repeat=options.family_settings(EchoSettings).repeat)
"""
METADATA = "Metadata-Version: 2.1\nName: echo-family\nVersion: 1.0\n"
ENTRY_POINTS = "[raylens.families]\necho = echo_family:FAMILY\n"
ECHO = {"name": "echo", "family": "echo", "checkpoint": "anywhere"}


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with a family."""

    def install(code: str = PLUGIN, entry_points: str = ENTRY_POINTS) -> None:
        (tmp_path / "echo_family.py").write_text(code)
        metadata = tmp_path / "echo_family-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(METADATA)
        (metadata / "entry_points.txt").write_text(entry_points)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "echo_family", raising=False)
        families.cache_clear()

    yield install
    sys.modules.pop("echo_family", None)
    families.cache_clear()


@pytest.fixture
def plugin(install: Install) -> None:
    install()


@pytest.mark.usefixtures("plugin")
def test_a_plugin_is_configured_like_a_built_in_family() -> None:
    assert list(families()) == ["moondream", "smolvlm", "qwen2_5_vl", "echo"]
    config = AppConfig.model_validate({"models": [{**ECHO, "repeat": 3}]})
    assert config.models[0].family_settings.model_dump() == {"repeat": 3}
    assert Catalog(config).resolve("parrot", "openai") == "echo"


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeat": "often"}, "repeat"),
        ({"max_pixels": 9}, "only for the family qwen2_5_vl"),
        ({"runtime": "cloud"}, "cloud serves the family moondream only"),
        ({"family": "smolvlm", "repeat": 3}, "only for the family echo"),
        ({"family": "ecco"}, "unknown family 'ecco'; known: moondream, smolvlm, qwen2_5_vl, echo"),
    ],
)
def test_a_plugin_s_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({**ECHO, **settings})


@pytest.mark.usefixtures("plugin")
def test_a_plugin_s_model_answers_through_the_engine() -> None:
    model = load_model(ModelConfig.model_validate({**ECHO, "repeat": 2}))
    request = VisionRequest("r", "echo", Query("hey"), time.time() + 60, SamplingParams(99))
    engine = Engine(model, EngineLimits())
    (sequence,) = make_sequences(request, model.prepare(request, []), model.tokenizer)
    engine.scheduler.add([sequence])
    deltas = [
        output.delta for _ in iter(lambda: engine.has_work, False) for output in engine.step()
    ]
    assert "".join(delta.text for delta in deltas if delta) == "heyhey"


@pytest.mark.usefixtures("plugin")
def test_a_replica_warms_up_with_a_task_that_the_model_supports() -> None:
    model = load_model(ModelConfig.model_validate(ECHO))
    warm_up(model, EngineLimits())


@pytest.mark.usefixtures("plugin")
def test_on_another_server_a_model_has_only_the_family_s_tasks() -> None:
    remote = {"base_url": "http://127.0.0.1:1/v1", "model": "echo"}
    config = ModelConfig.model_validate(
        {"name": "echo", "family": "echo", "runtime": "openai", "remote": remote}
    )
    assert OpenAIRuntime(config, config.remote).tasks == {"query"}


@pytest.mark.parametrize(
    ("code", "entry_points", "message"),
    [
        (PLUGIN, ENTRY_POINTS.replace(":FAMILY", ":NOTHING"), "echo_family:NOTHING: loading it"),
        ("import nothing_of_this_name", ENTRY_POINTS, "echo_family:FAMILY: loading it failed"),
        ("FAMILY = 5", ENTRY_POINTS, "echo_family:FAMILY: expected a Family, got 5"),
        (PLUGIN.replace('"echo"', '"smolvlm"'), ENTRY_POINTS, "a family 'smolvlm' already"),
    ],
)
def test_a_broken_plugin_is_named(
    install: Install, code: str, entry_points: str, message: str
) -> None:
    install(code, entry_points)
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({"name": "smolvlm", "family": "smolvlm"})


@pytest.mark.usefixtures("plugin")
def test_a_family_without_a_pocket_checkpoint_needs_one_in_the_configuration() -> None:
    with pytest.raises(OSError, match="the family echo has no pocket checkpoint"):
        load_model(ModelConfig.model_validate({"name": "echo", "family": "echo"}))


def test_an_uninstalled_family_is_unknown() -> None:
    with pytest.raises(ValidationError, match="unknown family 'echo'; known: moondream, smolvlm"):
        ModelConfig.model_validate(ECHO)
