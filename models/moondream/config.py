"""The configuration of a checkpoint. What a ``config.json`` leaves out are Moondream 2's own
figures (``config.py`` upstream), as those on the hub leave out everything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Ids = tuple[int, ...]


@dataclass(frozen=True)
class TextConfig:
    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    vocab_size: int = 51200
    max_context: int = 2048
    n_heads: int = 32
    n_kv_heads: int = 32
    """As many as ``n_heads`` where a configuration names only those."""

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
    """In patches, on each side of a crop."""
    proj_inner_dim: int = 8192

    @property
    def grid(self) -> int:
        """Patches along a crop's side, and image tokens along a picture's."""
        return self.crop_size // self.enc_patch_size


@dataclass(frozen=True)
class RegionConfig:
    dim: int = 2048
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024
    """Bins of a coordinate."""
    size_feat_dim: int = 512
    size_out_dim: int = 2048
    """Bins of a width and of a height together."""
    inner_dim: int = 8192

    @property
    def size_bins(self) -> int:
        return self.size_out_dim // 2


@dataclass(frozen=True)
class Template:
    """What stands before and behind a user's words."""

    prefix: Ids
    suffix: Ids


@dataclass(frozen=True)
class TokenizerConfig:
    """Token ids of ``moondream/starmie-v1``, and the prompts that are made of them. ``caption`` has
    one whole prompt for each length."""

    bos_id: int = 0
    eos_id: int = 0
    answer_id: int = 3
    thinking_id: int = 4
    coord_id: int = 5
    size_id: int = 6
    start_ground_points_id: int = 7
    end_ground_id: int = 9
    caption: Mapping[str, Ids] = field(
        default_factory=lambda: {
            "short": (1, 32708, 2, 12492, 3),
            "normal": (1, 32708, 2, 6382, 3),
            "long": (1, 32708, 2, 4059, 3),
        }
    )
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
        """As a ``config.json`` holds it under ``config``."""
        tokenizer = asdict(self.tokenizer)
        templates = {name: tokenizer.pop(name) for name in ("caption", "query", "detect", "point")}
        sections = {name: asdict(getattr(self, name)) for name in ("text", "vision", "region")}
        return {**sections, "tokenizer": {**tokenizer, "templates": templates}}


def read_config(path: Path) -> MoondreamConfig:
    """A checkpoint's ``config.json``. Raises ``ValueError`` for what this code doesn't know."""
    return config_of(json.loads(path.read_text()).get("config") or {})


def config_of(given: Mapping[str, Any]) -> MoondreamConfig:
    """Upstream's dictionary of sections. Raises ``ValueError`` for what this code doesn't know."""
    given = dict(given)
    text, region, tokenizer = (
        dict(given.pop(name, {})) for name in ("text", "region", "tokenizer")
    )
    vision = VisionConfig(**_known(VisionConfig, given.pop("vision", {}), "vision"))
    for name, section in (("text", text), ("region", region)):
        if section.pop("group_size", None) is not None:
            raise ValueError(f"{name}.group_size: checkpoints of 4-bit weights are not supported")
    prefix = text.pop("prefix_attn", 1 + vision.grid**2)
    if prefix != 1 + vision.grid**2:
        raise ValueError(
            f"text.prefix_attn: {prefix}; a picture takes {vision.grid**2} tokens, and one is before it"
        )
    templates = dict(tokenizer.pop("templates", {}))
    if "caption" in templates:
        tokenizer["caption"] = {
            length: tuple(ids) for length, ids in templates.pop("caption").items()
        }
    for name in ("query", "detect", "point"):
        if name in templates:
            template = templates.pop(name)
            if template is None:
                raise ValueError(
                    f"tokenizer.templates.{name}: none; such checkpoints are not supported"
                )
            tokenizer[name] = Template(tuple(template["prefix"]), tuple(template["suffix"]))
    text.setdefault("n_kv_heads", text.get("n_heads", TextConfig.n_heads))
    if given or templates:
        raise ValueError(f"{next(iter({**given, **templates}))}: not known")
    return MoondreamConfig(
        TextConfig(**_known(TextConfig, text, "text")),
        vision,
        RegionConfig(**_known(RegionConfig, region, "region")),
        TokenizerConfig(**_known(TokenizerConfig, tokenizer, "tokenizer")),
    )


def _known(kind: type[Any], given: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    unknown = set(given) - {each.name for each in fields(kind)}
    if unknown:
        raise ValueError(f"{section}.{min(unknown)}: not known")
    return given
