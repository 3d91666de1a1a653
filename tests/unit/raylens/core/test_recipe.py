from __future__ import annotations

import pytest

from raylens.core.errors import InvalidRequest
from raylens.core.recipe import AUTO, BUNDLED, ENHANCED, PLAIN, Recipe, choose


def test_the_plain_recipe_enhances_nothing() -> None:
    assert (PLAIN.smart_crop, PLAIN.denoise.enabled, PLAIN.color_balance.enabled) == (
        False,
        False,
        False,
    )
    assert Recipe() == PLAIN


def test_enhanced_has_the_usual_enhancement_settings() -> None:
    assert choose(
        {
            "smart_crop": True,
            "size": [1024, 1024],
            "min_size": 512,
            "preserve_aspect_ratio": True,
            "jpeg_quality": 95,
            "optimize": True,
            "denoise": {
                "enabled": True,
                "method": "bilateral",
                "diameter": 9,
                "sigma_color": 75,
                "sigma_space": 75,
            },
            "color_balance": {
                "enabled": True,
                "method": "lab",
                "l_channel_boost": 1.2,
                "ab_channel_boost": 1.1,
            },
        },
        PLAIN,
        BUNDLED,
    ) == ENHANCED  # fmt: skip


def test_a_choice_changes_what_it_names_and_nothing_else() -> None:
    assert choose(None, AUTO, BUNDLED) is AUTO
    assert choose("enhanced", AUTO, BUNDLED) == ENHANCED
    assert choose({"name": None}, AUTO, BUNDLED) == AUTO
    assert choose({"denoise": {"method": "nlm"}}, AUTO, BUNDLED).denoise.enabled == "auto"
    changed = choose(
        {"name": "enhanced", "size": [640, 480], "color_balance": {"enabled": "auto"}},
        AUTO,
        BUNDLED,
    )
    assert (changed.size, changed.smart_crop, changed.color_balance.enabled) == (
        (640, 480),
        True,
        "auto",
    )
    assert changed.color_balance.l_channel_boost == 1.2


def test_a_model_may_bound_the_size() -> None:
    assert ENHANCED.within(640).size == (640, 640)
    assert Recipe(size=(100, 2000)).within(1024).size == (100, 1024)
    assert Recipe(size=(2048, 1024), preserve_aspect_ratio=False).within(1024).size == (1024, 512)
    assert Recipe(size=(4096, 16), preserve_aspect_ratio=False).within(64).size == (64, 16)
    assert ENHANCED.within(None) is ENHANCED


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nope", "recipe: unknown recipe 'nope'; known: plain, auto, enhanced"),
        ({"name": 7}, "recipe: unknown recipe '7'"),
        ({"name": {"x": 1}}, "unknown recipe"),
        ({"sise": [1, 2]}, "recipe.sise: unknown field"),
        ({"denoise": {"strength": 2}}, "recipe.denoise.strength: unknown field"),
        ({"denoise": True}, "recipe.denoise: expected an object"),
        (
            {"denoise": {"enabled": "yes"}},
            "recipe.denoise.enabled: expected true, false or 'auto'",
        ),
        (
            {"denoise": {"diameter": 99}},
            "recipe.denoise.diameter: Input should be less than or equal to 15",
        ),
        (
            {"color_balance": {"method": "magic"}},
            "recipe.color_balance.method: expected 'lab', 'gray_world' or 'clahe'",
        ),
        (
            {"color_balance": {"l_channel_boost": float("nan")}},
            "recipe.color_balance.l_channel_boost",
        ),
        ({"size": 1024}, "recipe.size: expected a list of two numbers"),
        ({"size": [64, 64, 64]}, "recipe.size: expected a list of two numbers"),
        ({"size": [64]}, "recipe.size.1: expected a list of two numbers"),
        ({"smart_crop": "yes"}, "recipe.smart_crop"),
        ({"jpeg_quality": True}, "recipe.jpeg_quality"),
        ({"denoise": {"enabled": 1}}, "recipe.denoise.enabled: expected true, false or 'auto'"),
        ({"denoise": {"sigma_color": "75"}}, "recipe.denoise.sigma_color"),
        ({"size": [1, 9999]}, "recipe.size.0: Input should be greater than or equal to 16"),
        ({"jpeg_quality": 101}, "recipe.jpeg_quality: Input should be less than or equal to 100"),
        ({"x" * 5000: 1}, "recipe.xxx"),
    ],
)
def test_a_bad_choice_is_refused_by_the_name_of_its_field(choice, message) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose(choice, PLAIN, BUNDLED)
    assert message in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.field is not None
    assert caught.value.field.startswith("recipe")
