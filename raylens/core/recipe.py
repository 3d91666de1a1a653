"""How a picture is prepared for a model: the recipe, the bundled ones by name, and how a request
changes one.

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


def _no_number(value: Any) -> Any:
    """1 equals True."""
    return value if isinstance(value, bool) else str(value)


Switch = Annotated[Literal[True, False, "auto"], BeforeValidator(_no_number)]
"""``auto`` measures the picture, and acts only where that shows a fault."""
_LEAST = 16
Side = Annotated[int, Field(ge=_LEAST, le=4096, strict=True)]
_KNOWN_KEYS_ONLY = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Denoise:
    """``diameter`` (pixels), ``sigma_color`` (levels of 255) and ``sigma_space`` (pixels) are the
    bilateral filter's.

    The other methods need no parameter. Under ``auto`` the strength follows the noise that is
    measured.
    """

    __pydantic_config__ = _KNOWN_KEYS_ONLY

    enabled: Switch = False
    method: Literal["bilateral", "nlm", "median"] = "bilateral"
    diameter: Annotated[int, Field(ge=1, le=15, strict=True)] = 9
    sigma_color: Annotated[float, Field(gt=0, le=255, strict=True)] = 75
    sigma_space: Annotated[float, Field(gt=0, le=255, strict=True)] = 75


@dataclass(frozen=True)
class ColorBalance:
    """The boosts are the ``lab`` method's: factors of lightness, and of color's distance from gray.

    ``method`` is what ``enabled: true`` does to every picture. ``auto`` corrects what it finds, and
    only that: a color cast, darkness, low contrast.
    """

    __pydantic_config__ = _KNOWN_KEYS_ONLY

    enabled: Switch = False
    method: Literal["lab", "gray_world", "clahe"] = "lab"
    l_channel_boost: Annotated[float, Field(gt=0, le=4, strict=True)] = 1.2
    ab_channel_boost: Annotated[float, Field(ge=0, le=4, strict=True)] = 1.1


@dataclass(frozen=True)
class Recipe:
    """What preprocessing does to a picture, in the order of the fields.

    ``smart_crop`` trims letterbox and scanner bars. ``size`` is (width, height) in pixels: a larger
    picture is brought down to fit; with ``preserve_aspect_ratio`` off, every picture takes exactly
    this size, by cutting to its most salient window where ``smart_crop`` is on and by stretching
    where it is not. A picture whose shorter side is under ``min_size`` pixels is enlarged to it, as
    far as ``size`` lets it. ``jpeg_quality`` and ``optimize`` are for the file that ``POST
    /v1/preprocess`` answers with; a model gets the pixels themselves.
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
        """The recipe with no side of ``size`` over ``max_side``; where it gives a shape, that shape
        stays."""
        width, height = self.size
        if max_side is None or max(width, height) <= max_side:
            return self
        if self.preserve_aspect_ratio:
            return replace(self, size=(min(width, max_side), min(height, max_side)))
        scale = max_side / max(width, height)
        return replace(
            self, size=(max(_LEAST, round(width * scale)), max(_LEAST, round(height * scale)))
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
"""What holds where nobody says anything; docs/preprocessing.md has the measurements behind the
choice."""
BUNDLED: Mapping[str, Recipe] = MappingProxyType(
    {"plain": PLAIN, "auto": AUTO, "enhanced": ENHANCED}
)

_SAYINGS = {
    "unexpected_keyword_argument": "no such field",
    "dataclass_type": "an object of its fields is needed",
    "tuple_type": "a list of two numbers, width and height, is needed",
    "too_long": "a list of two numbers, width and height, is needed",
    "missing": "a list of two numbers, width and height, is needed",
    "literal_error": "{expected} is needed",
}
"""What pydantic says of Python, said of JSON."""

Choice = str | Mapping[str, Any] | None
"""A recipe's name, or changes to one: its fields, and ``name`` where it is not the one that holds
anyway."""


def choose(choice: Choice, base: Recipe, named: Mapping[str, Recipe]) -> Recipe:
    """``base`` where nothing is chosen, a recipe by name, or either with changes; what is not named
    stays as it is.

    Raises ``InvalidRequest``, which names the field under ``recipe``.
    """
    if choice is None:
        return base
    if isinstance(choice, str):
        choice = {"name": choice}
    changes = dict(choice)
    name = changes.pop("name", None)
    if name is not None:
        base = _by_name(name, named)
    try:
        return RECIPE.validate_python(_merge(asdict(base), changes))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["recipe", *map(str, first["loc"])])[:160]
        raise InvalidRequest(f"{where}: {_say(first)}", where) from None


def _say(error: Any) -> str:
    expected = (
        str(error.get("ctx", {}).get("expected", ""))
        .replace("True", "true")
        .replace("False", "false")
    )
    return _SAYINGS.get(error["type"], str(error["msg"])).format(expected=expected)


def _by_name(name: object, named: Mapping[str, Recipe]) -> Recipe:
    if not isinstance(name, str) or name not in named:
        raise InvalidRequest(
            f"recipe: {str(name)[:64]!r} is no recipe; there are: {', '.join(named)}", "recipe"
        )
    return named[name]


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = base.get(key)
        merged[key] = (
            _merge(nested, value)
            if isinstance(nested, dict) and isinstance(value, Mapping)
            else value
        )
    return merged
