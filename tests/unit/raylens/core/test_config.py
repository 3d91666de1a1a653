from __future__ import annotations

import pytest
from pydantic import ValidationError

from raylens.core.config import AppConfig, ModelConfig

MODEL = {"name": "smolvlm", "family": "smolvlm"}


def test_a_misspelled_key_is_named() -> None:
    with pytest.raises(ValidationError, match=r"models\.0\.max_wating"):
        AppConfig.model_validate({"models": [{**MODEL, "max_wating": 3}]})


def test_names_and_aliases_are_unique() -> None:
    with pytest.raises(ValidationError, match="'a' is given twice"):
        AppConfig.model_validate({"models": [{**MODEL, "aliases": ["a"]}, {**MODEL, "name": "a"}]})


def test_a_model_is_needed() -> None:
    with pytest.raises(ValidationError, match="at least one"):
        AppConfig.model_validate({"models": []})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runtime": "cloud"}, "runtime: cloud is for the family moondream"),
        ({"runtime": "openai"}, "remote.base_url: the runtime openai needs the server's"),
        (
            {"runtime": "openai", "remote": {"base_url": "http://a"}},
            "remote.model: the runtime openai needs to know",
        ),
        ({"remote": {"model": "b"}}, "remote: the runtime engine has its model here"),
        (
            {
                "runtime": "openai",
                "remote": {"base_url": "http://a", "model": "b"},
                "quantize": "int8",
            },
            "quantize: only the runtime engine knows",
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


def test_bytes_may_have_units_and_pixels_are_bounds_of_a_family_that_has_them() -> None:
    model = ModelConfig.model_validate(
        {**MODEL, "family": "qwen2_5_vl", "kv_cache": "2GiB", "max_pixels": 1000}
    )
    assert (model.kv_cache, model.max_pixels) == (2 * 2**30, 1000)
    with pytest.raises(ValidationError, match="smolvlm has no dynamic resolution"):
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
        ({"defaults": {"recipe": "nope"}}, "defaults.recipe: recipe: 'nope' is no recipe"),
        ({"recipes": {"auto": "plain"}}, "recipes.auto: a bundled recipe has this name"),
        ({"recipes": {"mine": {"sise": 3}}}, "recipes.mine: recipe.sise: no such field"),
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
