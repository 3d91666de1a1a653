"""Recipes: how a picture is preprocessed for a model, and how a request changes that.

The field names, and the values of ``enhanced``, are those of the SmolVLM back ends that people
already configure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from raylens.core.errors import InvalidRequest

Flag = Annotated[bool, Field(strict=True)]


def _refuse_numbers(value: Any) -> Any:
    """Turn 1 into a string, since ``Literal[True]`` would accept it: 1 equals True."""
    return value if isinstance(value, bool) else str(value)


Switch = Annotated[Literal[True, False, "auto"], BeforeValidator(_refuse_numbers)]
"""``auto`` measures the picture, and acts only if it finds a fault."""
_MIN_SIDE = 16
Side = Annotated[int, Field(ge=_MIN_SIDE, le=4096, strict=True)]
_KNOWN_KEYS_ONLY = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Denoise:
    """Noise reduction.

    ``diameter`` (pixels), ``sigma_color`` (levels of 255) and ``sigma_space`` (pixels) are
    parameters of the bilateral filter; the other methods have none. With ``auto``, the strength
    follows the measured noise.
    """

    __pydantic_config__ = _KNOWN_KEYS_ONLY

    enabled: Switch = False
    method: Literal["bilateral", "nlm", "median"] = "bilateral"
    diameter: Annotated[int, Field(ge=1, le=15, strict=True)] = 9
    sigma_color: Annotated[float, Field(gt=0, le=255, strict=True)] = 75
    sigma_space: Annotated[float, Field(gt=0, le=255, strict=True)] = 75


@dataclass(frozen=True)
class ColorBalance:
    """Color correction.

    ``enabled: true`` applies ``method`` to every picture. ``auto`` corrects a color cast, darkness
    or low contrast, each only if it is measured. The boosts are factors of the ``lab`` method, for
    lightness and for the distance of colors from gray.
    """

    __pydantic_config__ = _KNOWN_KEYS_ONLY

    enabled: Switch = False
    method: Literal["lab", "gray_world", "clahe"] = "lab"
    l_channel_boost: Annotated[float, Field(gt=0, le=4, strict=True)] = 1.2
    ab_channel_boost: Annotated[float, Field(ge=0, le=4, strict=True)] = 1.1


@dataclass(frozen=True)
class Recipe:
    """The steps of preprocessing, in the order of the fields.

    - ``smart_crop`` trims letterbox and scanner bars.
    - ``size`` is (width, height) in pixels; larger pictures are reduced to fit. Without
      ``preserve_aspect_ratio`` every picture gets exactly this size: ``smart_crop`` then crops to
      the most salient window of that shape; without it, the picture is stretched.
    - A picture whose shorter side is below ``min_size`` pixels is enlarged to it, within ``size``.
    - ``jpeg_quality`` and ``optimize`` apply to the file that ``POST /v1/preprocess`` returns; a
      model gets the pixels.
    """

    __pydantic_config__ = _KNOWN_KEYS_ONLY

    smart_crop: Flag = False
    size: tuple[Side, Side] = (2048, 2048)
    min_size: Annotated[int, Field(ge=0, le=4096, strict=True)] = 0
    preserve_aspect_ratio: Flag = True
    denoise: Denoise = field(default_factory=Denoise)
    color_balance: ColorBalance = field(default_factory=ColorBalance)
    jpeg_quality: Annotated[int, Field(ge=1, le=100, strict=True)] = 95
    optimize: Flag = True

    def within(self, max_side: int | None) -> Self:
        """Return the recipe with both sides of ``size`` reduced to ``max_side``. If ``size`` sets
        the aspect ratio, it is kept."""
        width, height = self.size
        if max_side is None or max(width, height) <= max_side:
            return self
        if self.preserve_aspect_ratio:
            return replace(self, size=(min(width, max_side), min(height, max_side)))
        scale = max_side / max(width, height)
        return replace(
            self, size=(max(_MIN_SIDE, round(width * scale)), max(_MIN_SIDE, round(height * scale)))
        )


RECIPE = TypeAdapter(Recipe)
PLAIN = Recipe()
AUTO = Recipe(denoise=Denoise(enabled="auto"), color_balance=ColorBalance(enabled="auto"))
ENHANCED = Recipe(
    smart_crop=True,
    size=(1024, 1024),
    min_size=512,
    denoise=Denoise(enabled=True),
    color_balance=ColorBalance(enabled=True),
)
DEFAULT = AUTO
"""The recipe if nothing is configured; docs/preprocessing.md has the measurements behind it."""
BUNDLED: Mapping[str, Recipe] = MappingProxyType(
    {"plain": PLAIN, "auto": AUTO, "enhanced": ENHANCED}
)

NOISE_REDUCTION = "noise_reduction"
"""Another name of the field ``denoise``."""

_SIZE_EXPECTED = "expected a list of two numbers, width and height"
_MESSAGES = {
    "unexpected_keyword_argument": "unknown field",
    "dataclass_type": "expected an object",
    "tuple_type": _SIZE_EXPECTED,
    "too_long": _SIZE_EXPECTED,
    "missing": _SIZE_EXPECTED,
    "literal_error": "expected {expected}",
}
"""Messages in terms of JSON, by pydantic's error type; pydantic's own speak of Python."""

Choice = str | Mapping[str, Any] | None
"""A recipe's name, or fields that change one. ``name`` says which; without it, the recipe that
would apply anyway. None changes nothing."""


def choose(choice: Choice, base: Recipe, named: Mapping[str, Recipe]) -> Recipe:
    """Apply a choice to ``base``, or to the recipe of ``named`` that the choice names.

    Raises ``InvalidRequest``, which names the field under ``recipe``.
    """
    if choice is None:
        return base
    if isinstance(choice, str):
        choice = {"name": choice}
    changes = dict(choice)
    if NOISE_REDUCTION in changes and "denoise" not in changes:
        changes["denoise"] = changes.pop(NOISE_REDUCTION)
    name = changes.pop("name", None)
    if name is not None:
        base = _by_name(name, named)
    try:
        return RECIPE.validate_python(_merge(asdict(base), changes))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(["recipe", *map(str, first["loc"])])[:160]
        raise InvalidRequest(f"{path}: {_message(first)}", path) from None


def _message(error: Any) -> str:
    expected = str(error.get("ctx", {}).get("expected", ""))
    expected = expected.replace("True", "true").replace("False", "false")
    return _MESSAGES.get(error["type"], str(error["msg"])).format(expected=expected)


def _by_name(name: object, named: Mapping[str, Recipe]) -> Recipe:
    if not isinstance(name, str) or name not in named:
        raise InvalidRequest(
            f"recipe: unknown recipe {str(name)[:64]!r}; known: {', '.join(named)}", "recipe"
        )
    return named[name]


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        current = base.get(key)
        if isinstance(current, dict) and isinstance(value, Mapping):
            value = _merge(current, value)
        merged[key] = value
    return merged
