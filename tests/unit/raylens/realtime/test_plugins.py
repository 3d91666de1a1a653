"""Plugins, in Scope's form and in our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import numpy as np
import pluggy
import pytest
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from raylens.core.errors import InvalidRequest
from raylens.realtime import plugins
from raylens.realtime.pipeline import FrameResult, MoondreamPipeline
from raylens.realtime.plugins import Plugin, Registry, collect_from_scope_plugin, load_registry
from raylens.realtime.sessions import find_pipeline, merge_params, open_pipeline

hookimpl = pluggy.HookimplMarker("scope")


class TintConfig(BaseModel):
    """As in Scope: a description of the pipeline, and its settings."""

    pipeline_id: ClassVar[str] = "tint"
    pipeline_name: ClassVar[str] = "Tint"
    pipeline_description: ClassVar[str] = "Tints frames."
    pipeline_version: ClassVar[str] = "0.2.0"

    strength: float = Field(0.5, ge=0, le=1, json_schema_extra={"ui": {"order": 1}})
    height: int = 512


class TintPipeline:
    """Moves a frame's red channel toward one, and counts its frames."""

    @classmethod
    def get_config_class(cls) -> type[TintConfig]:
        return TintConfig

    def __init__(self, strength: float, **_: Any) -> None:
        self.strength = strength
        self.frames = 0
        self.prepared: dict[str, Any] = {}

    def prepare(self, **parameters: Any) -> None:
        self.prepared = parameters

    def __call__(self, **parameters: Any) -> dict[str, torch.Tensor]:
        (video,) = parameters["video"]
        assert isinstance(video, torch.Tensor)
        assert (video.dtype, video.shape[0]) == (torch.uint8, 1)
        self.frames += 1
        output = video.float() / 255
        output[..., 0] += parameters["strength"] * (1 - output[..., 0]) / self.frames
        return {"video": output}


class ScopePlugin:
    @hookimpl
    def register_pipelines(self, register: Any) -> None:
        register(TintPipeline)


def never(*_: Any) -> FrameResult:
    raise AssertionError("a plugin doesn't ask the model")


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.add(collect_from_scope_plugin(ScopePlugin()), Plugin("scope-tint", "0.2.0"))
    return registry


def frames() -> Iterator[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    for _ in range(12):
        yield generator.integers(0, 256, (1, 24, 32, 3), np.uint8)


def test_a_plugin_of_scope_gives_the_same_frames_as_when_it_is_called_directly(
    registry: Registry,
) -> None:
    pipeline = find_pipeline(registry, "tint")
    served = open_pipeline(pipeline, {"strength": 0.4}, never, torch.from_numpy)
    direct = TintPipeline(strength=0.4, height=512)
    for number, frame in enumerate(frames()):
        strength = 0.4 if number < 6 else 0.9
        parameters = {} if number < 6 else {"strength": 0.9}
        expected = direct(video=[torch.from_numpy(frame)], strength=strength, height=512)["video"]
        output = served(video=[frame], **parameters)["video"]
        assert output.dtype == np.float32
        assert np.array_equal(output, expected.numpy())


def test_a_plugin_is_prepared_with_its_settings(registry: Registry) -> None:
    session: Any = open_pipeline(find_pipeline(registry, "tint"), {}, never, torch.from_numpy)
    assert session._instance.prepared == {"strength": 0.5, "height": 512}


def test_a_pipeline_describes_itself(registry: Registry) -> None:
    pipeline = registry.pipelines["tint"]
    assert (pipeline.name, pipeline.description) == ("Tint", "Tints frames.")
    assert (pipeline.version, pipeline.plugin_name) == ("0.2.0", "scope-tint")
    properties = pipeline.schema()["properties"]
    assert properties["strength"]["ui"] == {"order": 1}
    assert "ui" not in properties["height"]
    assert registry.plugins[0].pipelines == ("tint",)


def test_the_built_in_pipeline_is_always_there() -> None:
    registry = load_registry()
    pipeline = find_pipeline(registry, "moondream")
    session = open_pipeline(pipeline, {"feature": "query"}, lambda *_: FrameResult("3"), never)
    assert isinstance(session, MoondreamPipeline)
    properties = pipeline.schema()["properties"]
    assert properties["feature"]["$ref"] == "#/$defs/MoondreamFeature"
    assert [name for name, value in properties.items() if "ui" not in value] == []
    assert pipeline.schema()["$defs"]["MoondreamFeature"]["enum"] == [
        "caption",
        "query",
        "detect",
        "point",
    ]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": 1.5}, "load_params.temperature: Input should be less than or equal to 1"),
        ({"feature": "segment"}, "load_params.feature: Input should be 'caption'"),
        ({"frobnicate": 1}, "load_params.frobnicate: no such setting; known: feature, caption_len"),
    ],
)
def test_invalid_settings_are_refused_with_their_names(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        merge_params(load_registry().pipelines["moondream"], params)
    assert caught.value.message.startswith(message)


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown pipeline 'x'; known: moondream"):
        find_pipeline(load_registry(), "x")


class TestDiscovery:
    @pytest.fixture(autouse=True)
    def _forget(self) -> Iterator[None]:
        load_registry.cache_clear()
        yield
        load_registry.cache_clear()

    def test_entry_points_of_both_groups_are_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here = "tests.unit.raylens.realtime.test_plugins"
        entries = {
            plugins.GROUP: [
                EntryPoint("own", f"{here}:OwnPipeline", plugins.GROUP),
                EntryPoint("odd", f"{here}:UndescribablePipeline", plugins.GROUP),
            ],
            plugins.SCOPE: [
                EntryPoint("tint", f"{here}:SCOPE_PLUGIN", plugins.SCOPE),
                EntryPoint("gone", "no_such_module:plugin", plugins.SCOPE),
                EntryPoint("again", f"{here}:SCOPE_PLUGIN", plugins.SCOPE),
            ],
        }
        monkeypatch.setattr(plugins, "entry_points", lambda group: entries[group])
        registry = load_registry()
        assert list(registry.pipelines) == ["moondream", "ownpipeline", "tint"]
        assert [plugin.name for plugin in registry.plugins] == ["raylens", "own", "tint"]
        assert [plugin.name for plugin in registry.failed] == ["odd", "gone", "again"]
        assert registry.failed[1].error.startswith("ModuleNotFoundError")
        assert "there is a pipeline 'tint' already" in registry.failed[2].error


class OwnPipeline:
    @staticmethod
    def get_config_class() -> type[BaseModel]:
        return OwnConfig


class OwnConfig(BaseModel):
    strength: int = 1


class UndescribablePipeline:
    """Its settings have no JSON schema, which must not break the others'."""

    @staticmethod
    def get_config_class() -> type[BaseModel]:
        class Config(BaseModel):
            callback: Callable[[], None] = print

        return Config


SCOPE_PLUGIN = ScopePlugin()
