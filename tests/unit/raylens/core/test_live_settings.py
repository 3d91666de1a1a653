from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from raylens.core.config import AppConfig
from raylens.core.keys import hash_key
from raylens.core.live_settings import (
    LIVE,
    LIVE_OF_JOBS,
    LIVE_OF_MODELS,
    LastResult,
    apply_settings,
    live_view,
)
from raylens.core.recipe import DEFAULT

CONFIG = AppConfig.model_validate(
    {
        "models": [
            {"name": "a", "family": "smolvlm", "batch_size": 4, "dtype": "bfloat16"},
            {"name": "b", "family": "qwen2_5_vl", "max_pixels": 50176},
        ],
        "recipes": {"mine": {"jpeg_quality": 33}},
        "limits": {"max_tokens": 100, "max_images": 3},
        "jobs": {"capacity": 7, "store": "postgresql://db/jobs"},
        "auth": "none",
    }
)


def test_a_section_keeps_what_the_settings_do_not_mention() -> None:
    settings = {"limits": {"max_tokens": 200}, "jobs": {"capacity": 9}}
    changed = apply_settings(CONFIG, settings)
    assert (changed.limits.max_tokens, changed.limits.max_images) == (200, 3)
    assert (changed.jobs.capacity, changed.jobs.store) == (9, "postgresql://db/jobs")
    assert changed.models == CONFIG.models
    assert CONFIG.limits.max_tokens == 100


@pytest.mark.parametrize(
    "settings",
    [None, {}, {"models": {}}, {"models": {"a": {}}}, {"defaults": {"max_timeout_s": 600}}],
)
def test_without_settings_nothing_changes(settings: dict[str, Any] | None) -> None:
    assert apply_settings(CONFIG, settings).model_dump() == CONFIG.model_dump()


def test_a_model_takes_its_settings_under_either_name() -> None:
    changed = apply_settings(CONFIG, {"models": {"a": {"batch_size": 16, "recipe": "mine"}}})
    a, b = changed.models
    assert (a.max_batch_size, a.dtype) == (16, "bfloat16")
    assert changed.recipe_of(a).jpeg_quality == 33
    assert b == CONFIG.models[1]


def test_a_recipe_is_added_or_replaced_as_a_whole() -> None:
    recipes = {"other": {"jpeg_quality": 50}, "mine": {"min_size": 600}}
    named = apply_settings(CONFIG, {"recipes": recipes}).named_recipes()
    assert named["other"].jpeg_quality == 50
    assert named["mine"].min_size == 600
    assert named["mine"].jpeg_quality == DEFAULT.jpeg_quality


def test_keys_replace_the_former_ones() -> None:
    keys = [{"name": "ann", "hash": hash_key("rl-ann")}]
    changed = apply_settings(CONFIG, {"auth": {"keys": keys}})
    assert changed.auth is not None
    assert changed.auth != "none"
    assert changed.auth.key_ring().find("rl-ann") is not None
    assert apply_settings(changed, {"auth": "none"}).auth == "none"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": {}}, "limit: unknown setting; those that may change: allowed_hosts, "),
        ({"media_root": "/a"}, "media_root: needs new replicas; change it in args"),
        ({"limits": {"max_tokens": 0}}, "limits.max_tokens: Input should be greater"),
        ({"limits": {"max_token": 1}}, "limits.max_token: Extra inputs"),
        ({"limits": None}, "limits: Input should be"),
        ({"jobs": {"store": "sqlite"}}, "jobs.store: needs new replicas"),
        ({"jobs": None}, "jobs: expected a mapping"),
        ({"models": {"c": {}}}, "models.c: unknown model; known: a, b"),
        ({"models": [{"name": "a"}]}, "models: expected a mapping"),
        ({"models": {"a": 3}}, "models.a: expected a mapping"),
        ({"models": {"a": {"dtype": "float32"}}}, "models.a.dtype: needs new replicas"),
        ({"models": {"a": {"batch": 3}}}, "models.a.batch: unknown setting"),
        ({"models": {"a": {"batch_size": 0}}}, "models.a.max_batch_size: Input should be"),
        ({"models": {"a": {"recipe": "none"}}}, "a: recipe: unknown recipe 'none'"),
        ({"recipes": {"x": {"sise": 1}}}, "recipes.x: recipe.sise: unknown field"),
        (["limits"], "expected a mapping"),
        ({"defaults": {"max_timeout_s": 601}}, "defaults.max_timeout_s: 601; the limit is that of"),
    ],
)
def test_what_is_wrong_is_named(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        apply_settings(CONFIG, settings)


def test_the_settings_that_may_change_exist() -> None:
    model = CONFIG.models[0]
    assert set(AppConfig.model_fields) >= LIVE
    assert set(type(CONFIG.jobs).model_fields) >= LIVE_OF_JOBS
    assert set(type(model).model_fields) >= LIVE_OF_MODELS


def test_a_current_configuration_follows_its_source() -> None:
    configs = [CONFIG]
    live = live_view(lambda: configs[-1])
    jobs = live_view(lambda: live.jobs)
    configs.append(apply_settings(CONFIG, {"jobs": {"capacity": 8}}))
    assert (live.jobs.capacity, jobs.capacity) == (8, 8)


def test_a_last_result_is_made_again_for_another_argument() -> None:
    numbers = count(1)
    results = LastResult[AppConfig, int](lambda config: next(numbers))
    other = CONFIG.model_copy()
    assert [results(each) for each in (CONFIG, CONFIG, other, other, CONFIG)] == [1, 1, 2, 2, 3]
