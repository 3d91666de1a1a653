"""The configuration of a checkpoint.

The defaults are Moondream 2's (``config.py`` upstream). The ``config.json`` of the checkpoints on
the hub relies on them: it omits every value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

TokenIds = tuple[int, ...]

_TEMPLATES = ("query", "detect", "point")


@dataclass(frozen=True)
class TextConfig:
    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    vocab_size: int = 51200
    max_context: int = 2048
    n_heads: int = 32
    n_kv_heads: int = 32
    """:func:`parse_config` uses ``n_heads`` if the configuration omits it."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


@dataclass(frozen=True)
class VisionConfig:
    enc_dim: int = 1152
    enc_patch_size: int = 14
    enc_n_layers: int = 27
    enc_ff_dim: int = 4304
    enc_n_heads: int = 16
    proj_out_dim: int = 2048
    crop_size: int = 378
    in_channels: int = 3
    max_crops: int = 12
    overlap_margin: int = 4
    """Patches on each side of a crop that overlap its neighbor."""
    proj_inner_dim: int = 8192
    halves: bool = False
    """Cut large pictures into halves or quarters, as ``.mf`` files need, not into crops."""

    @property
    def grid(self) -> int:
        """Patches along a crop's side, and image tokens along a picture's side."""
        return self.crop_size // self.enc_patch_size


@dataclass(frozen=True)
class RegionConfig:
    dim: int = 2048
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024
    """Bins of a coordinate."""
    size_feat_dim: int = 512
    size_out_dim: int = 2048
    """Bins of a width plus bins of a height."""
    inner_dim: int = 8192
    linear_sizes: bool = False
    """The bins of a size are equally wide, as in ``.mf`` files, not each wider by a factor."""

    @property
    def size_bins(self) -> int:
        """Bins of a width, and of a height."""
        return self.size_out_dim // 2


@dataclass(frozen=True)
class Template:
    """Token ids before and after the user's text."""

    prefix: TokenIds
    suffix: TokenIds


@dataclass(frozen=True)
class TokenizerConfig:
    """Token ids of ``moondream/starmie-v1``, and the prompts made of them."""

    bos_id: int = 0
    eos_id: int = 0
    answer_id: int = 3
    thinking_id: int | None = 4
    """None if the checkpoint can't reason."""
    coord_id: int = 5
    size_id: int = 6
    start_ground_points_id: int = 7
    end_ground_id: int = 9
    caption: Mapping[str, TokenIds] = field(
        default_factory=lambda: {
            "short": (1, 32708, 2, 12492, 3),
            "normal": (1, 32708, 2, 6382, 3),
            "long": (1, 32708, 2, 4059, 3),
        }
    )
    """A complete prompt for each caption length."""
    query: Template = Template((1, 15381, 2), (3,))
    detect: Template = Template((1, 7235, 476, 2), (3,))
    point: Template = Template((1, 2581, 2), (3,))


@dataclass(frozen=True)
class MoondreamConfig:
    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    region: RegionConfig = RegionConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def to_dict(self) -> dict[str, Any]:
        """Return the sections as ``config.json`` stores them under ``config``."""
        tokenizer = asdict(self.tokenizer)
        templates = {name: tokenizer.pop(name) for name in ("caption", *_TEMPLATES)}
        sections = {name: asdict(getattr(self, name)) for name in ("text", "vision", "region")}
        return {**sections, "tokenizer": {**tokenizer, "templates": templates}}


def read_config(path: Path) -> MoondreamConfig:
    """Read a checkpoint's ``config.json``.

    Raises ``ValueError`` if it holds an unknown or unsupported value.
    """
    return parse_config(json.loads(path.read_text()).get("config") or {})


def parse_config(sections: Mapping[str, Any]) -> MoondreamConfig:
    """Parse upstream's dictionary of sections.

    Raises ``ValueError`` if it holds an unknown or unsupported value.
    """
    _check_names("", sections, _field_names(MoondreamConfig), "section")
    vision = VisionConfig(**_known_fields(VisionConfig, "vision", sections.get("vision", {})))
    return MoondreamConfig(
        _parse_text(sections.get("text", {}), vision),
        vision,
        _parse_region(sections.get("region", {})),
        _parse_tokenizer(sections.get("tokenizer", {})),
    )


def _parse_text(section: Mapping[str, Any], vision: VisionConfig) -> TextConfig:
    options = _without_group_size("text", section)
    image_tokens = vision.grid**2
    prefix = options.pop("prefix_attn", 1 + image_tokens)
    if prefix != 1 + image_tokens:
        raise ValueError(
            f"text.prefix_attn: {prefix}; expected {1 + image_tokens}:"
            f" the first token and a picture's {image_tokens}"
        )
    options.setdefault("n_kv_heads", options.get("n_heads", TextConfig.n_heads))
    return TextConfig(**_known_fields(TextConfig, "text", options))


def _parse_region(section: Mapping[str, Any]) -> RegionConfig:
    options = _without_group_size("region", section)
    return RegionConfig(**_known_fields(RegionConfig, "region", options))


def _without_group_size(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section without ``group_size``. Raises ``ValueError`` if it is set.

    Upstream sets it for 4-bit weights.
    """
    options = dict(section)
    if options.pop("group_size", None) is not None:
        raise ValueError(f"{name}.group_size: 4-bit weights are not supported")
    return options


def _parse_tokenizer(section: Mapping[str, Any]) -> TokenizerConfig:
    options = dict(section)
    templates = options.pop("templates", {})
    _check_names("tokenizer.templates.", templates, ("caption", *_TEMPLATES), "template")
    if "caption" in templates:
        options["caption"] = {length: tuple(ids) for length, ids in templates["caption"].items()}
    for name in _TEMPLATES:
        if name in templates:
            options[name] = _parse_template(name, templates[name])
    return TokenizerConfig(**_known_fields(TokenizerConfig, "tokenizer", options))


def _parse_template(name: str, template: Mapping[str, Any] | None) -> Template:
    if template is None:
        raise ValueError(
            f"tokenizer.templates.{name}: null; checkpoints without it are not supported"
        )
    return Template(tuple(template["prefix"]), tuple(template["suffix"]))


def _known_fields(
    config_type: type[Any], name: str, section: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the section. Raises ``ValueError`` if ``config_type`` lacks one of its fields."""
    _check_names(f"{name}.", section, _field_names(config_type), "field")
    return section


def _field_names(config_type: type[Any]) -> list[str]:
    return [config_field.name for config_field in fields(config_type)]


def _check_names(prefix: str, names: Iterable[str], known: Sequence[str], noun: str) -> None:
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"{prefix}{min(unknown)}: unknown {noun}; known: {', '.join(known)}")
