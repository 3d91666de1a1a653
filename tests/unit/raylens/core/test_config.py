from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.qwen2_5_vl.family import Qwen2_5_VLSettings
from raylens.core.config import AppConfig, ModelConfig

MODEL = {"name": "smolvlm", "family": "smolvlm"}


def test_a_misspelled_key_is_named() -> None:
    with pytest.raises(ValidationError, match=r"models\.0\.max_wating"):
        AppConfig.model_validate({"models": [{**MODEL, "max_wating": 3}]})


def test_names_and_aliases_are_unique() -> None:
    with pytest.raises(ValidationError, match="the name 'a' is used twice"):
        AppConfig.model_validate({"models": [{**MODEL, "aliases": ["a"]}, {**MODEL, "name": "a"}]})


def test_a_model_is_needed() -> None:
    with pytest.raises(ValidationError, match="at least one"):
        AppConfig.model_validate({"models": []})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "cloud"}, "runtime: cloud serves the family moondream only"),
        ({"runtime": "openai"}, "remote.base_url: missing; the runtime openai needs it"),
        (
            {"runtime": "openai", "remote": {"base_url": "http://a"}},
            "remote.model: missing; the runtime openai needs it",
        ),
        ({"remote": {"model": "b"}}, "remote: the runtime engine has no server"),
        (
            {
                "runtime": "openai",
                "remote": {"base_url": "http://a", "model": "b"},
                "quantize": "int8",
            },
            "quantize: only the runtime engine has this setting",
        ),
    ],
)
def test_a_runtime_that_cannot_work_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate({"name": "a", "family": "smolvlm", **settings})


def test_a_configuration_cannot_be_changed() -> None:
    config = AppConfig.model_validate({"models": [MODEL]})
    with pytest.raises(ValidationError, match="frozen"):
        config.log_level = "DEBUG"  # type: ignore[misc]


def test_a_model_takes_the_settings_of_other_servers() -> None:
    settings = {"batch_size": 3, "expected_response_time": 10.0, "max_image_size": 1024}
    config = AppConfig.model_validate({"models": [{"name": "a", "family": "smolvlm", **settings}]})
    (model,) = config.models
    assert (model.max_batch_size, model.expected_response_time, model.max_image_size) == (
        3,
        10.0,
        1024,
    )


SMOLVLM_FORM = {
    "model_name": "SmolVLM2-500M-Video",
    "model_id": "smolvlm2_500m_video",
    "inference": {"batch_size": 1, "expected_response_time": 10.0, "max_image_size": 1024},
}


def test_a_model_may_have_the_form_of_smolvlm_back_ends() -> None:
    model = ModelConfig.model_validate(SMOLVLM_FORM)
    assert (model.name, model.family) == ("smolvlm2_500m_video", "smolvlm")
    assert "SmolVLM2-500M-Video" in model.all_names
    assert (model.max_batch_size, model.expected_response_time, model.max_image_size) == (
        1,
        10.0,
        1024,
    )
    named = ModelConfig.model_validate({"name": "mine", "aliases": ["a"], **SMOLVLM_FORM})
    assert named.name == "mine"
    assert {"a", "smolvlm2_500m_video", "SmolVLM2-500M-Video"} <= set(named.all_names)
    other = ModelConfig.model_validate({**SMOLVLM_FORM, "family": "qwen2_5_vl"})
    assert other.family == "qwen2_5_vl"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inference": 3}, "inference: expected an object"),
        ({"max_image_size": 5}, "inference.max_image_size: given twice"),
        ({"inference": {"batch_size": 0}}, "batch_size"),
        ({"inference": {"beams": 2}}, "beams"),
        ({"model_id": 3}, "name"),
        ({"aliases": 3}, "aliases"),
    ],
)
def test_a_bad_setting_in_the_form_of_smolvlm_back_ends_is_named(changes, words) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate({**SMOLVLM_FORM, **changes})


def test_bytes_may_have_units_and_pixels_are_bounds_of_a_family_that_has_them() -> None:
    model = ModelConfig.model_validate(
        {**MODEL, "family": "qwen2_5_vl", "kv_cache": "2GiB", "max_pixels": 1000}
    )
    assert model.kv_cache == 2 * 2**30
    assert model.family_settings == Qwen2_5_VLSettings(max_pixels=1000)
    with pytest.raises(ValidationError, match=r"max_pixels\n +only for the family qwen2_5_vl"):
        ModelConfig.model_validate({**MODEL, "max_pixels": 1000})
    with pytest.raises(ValidationError, match="min_pixels: 2000; max_pixels is 1000"):
        ModelConfig.model_validate(
            {**MODEL, "family": "qwen2_5_vl", "min_pixels": 2000, "max_pixels": 1000}
        )


def test_recipes_build_on_each_other_and_a_model_on_the_default() -> None:
    config = AppConfig.model_validate(
        {
            "models": [
                {"name": "a", "family": "smolvlm"},
                {"name": "b", "family": "smolvlm", "recipe": {"size": [300, 200]}},
                {"name": "c", "family": "smolvlm", "recipe": "twice"},
            ],
            "recipes": {
                "once": {"name": "auto", "jpeg_quality": 50},
                "twice": {"name": "once", "min_size": 64},
            },
            "defaults": {"recipe": "once"},
        }
    )
    a, b, c = [config.recipe_of(model) for model in config.models]
    assert (a.jpeg_quality, a.denoise.enabled) == (50, "auto")
    assert (b.size, b.jpeg_quality) == ((300, 200), 50)
    assert (c.min_size, c.jpeg_quality) == (64, 50)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"defaults": {"recipe": "nope"}}, "defaults.recipe: recipe: unknown recipe 'nope'"),
        ({"recipes": {"auto": "plain"}}, "recipes.auto: the name of a bundled recipe"),
        ({"recipes": {"mine": {"sise": 3}}}, "recipes.mine: recipe.sise: unknown field"),
        (
            {"models": [{"name": "a", "family": "smolvlm", "recipe": {"min_size": -1}}]},
            "models: a: recipe.min_size",
        ),
        ({"models": [{"name": "a", "family": "smolvlm", "batch_size": 0}]}, "batch_size"),
        (
            {"models": [{"name": "a", "family": "smolvlm", "expected_response_time": 9999}]},
            "max_timeout_s, 600",
        ),
        (
            {"models": [{"name": "a", "family": "smolvlm", "batch_size": 2, "max_batch_size": 3}]},
            "batch_size",
        ),
    ],
)
def test_a_bad_recipe_or_setting_is_named(changes, words) -> None:
    with pytest.raises(ValidationError, match=words):
        AppConfig.model_validate({"models": [{"name": "a", "family": "smolvlm"}], **changes})


def test_an_engine_only_setting_is_refused_for_other_runtimes() -> None:
    cloud = {"name": "m", "family": "moondream", "runtime": "cloud"}
    with pytest.raises(ValidationError, match="tokenizer_revision: only the runtime engine"):
        ModelConfig.model_validate({**cloud, "tokenizer_revision": "main"})


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="unknown family 'llava'; known: moondream, smolvlm"):
        ModelConfig.model_validate({"name": "a", "family": "llava"})


def test_only_a_server_s_model_may_be_without_a_family() -> None:
    remote = {"base_url": "http://a", "model": "llama3"}
    model = ModelConfig.model_validate({"name": "a", "runtime": "openai", "remote": remote})
    assert model.family is None
    with pytest.raises(ValidationError, match="family: missing"):
        ModelConfig.model_validate({"name": "a"})
    with pytest.raises(ValidationError, match=r"max_pixels\n +only for the family qwen2_5_vl"):
        ModelConfig.model_validate(
            {"name": "a", "runtime": "openai", "remote": remote, "max_pixels": 9}
        )


def test_the_language_model_of_jobs_is_one_of_the_models() -> None:
    models = [MODEL]
    assert AppConfig.model_validate({"models": models, "jobs": {"llm": "smolvlm"}}).jobs.llm
    for name in ("smolvlm2_500m_video", "org/checkpoint"):
        served = [{**MODEL, "checkpoint": "org/checkpoint"}]
        assert AppConfig.model_validate({"models": served, "jobs": {"llm": name}}).jobs.llm == name
    with pytest.raises(ValidationError, match=r"jobs\.llm: unknown model 'x'; known: smolvlm"):
        AppConfig.model_validate({"models": models, "jobs": {"llm": "x"}})
    with pytest.raises(ValidationError, match="one with runtime: openai"):
        AppConfig.model_validate({"models": models, "jobs": {"llm": {"model": "smolvlm"}}})
