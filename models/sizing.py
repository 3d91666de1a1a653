"""How much of a GPU a model needs, from its configuration alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from models.memory import needed_bytes
from raylens.core.families import Family, families, load_attribute

CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class Footprint:
    """What a model keeps in memory, counted in values: bytes depend on the dtype."""

    parameters: int
    kv_values_per_token: int
    """Keys and values of one token, in all layers."""


def place(footprint: Footprint, itemsize: int, gpu_bytes: int, tokens: int, caches: int) -> float:
    """Return the smallest share of a GPU in which a model runs, rounded up to a hundredth.

    That is Ray's ``num_gpus``; above 1, a GPU is too small. The model's values have ``itemsize``
    bytes, its running answers have ``tokens`` in all, with their pictures and prompts, and its
    other caches take ``caches`` bytes.
    """
    weights = footprint.parameters * itemsize
    kv_cache = tokens * footprint.kv_values_per_token * itemsize
    return math.ceil(100 * needed_bytes(weights, caches, kv_cache) / gpu_bytes) / 100


def read_footprint(checkpoint: str, revision: str | None = None) -> Footprint:
    """Read the footprint of a checkpoint: a hub id, a folder or a file.

    Raises ``ValueError`` if its family is unknown or has none, and ``OSError`` if there is no such
    checkpoint.
    """
    family = find_family(checkpoint, revision)
    if family.footprint is None:
        raise ValueError(f"the family {family.name} tells no footprint")
    read: Callable[[str, str | None], Footprint] = load_attribute(family.footprint)
    return read(checkpoint, revision)


def find_family(checkpoint: str, revision: str | None) -> Family:
    """Return a checkpoint's family. Raises ``ValueError`` if it is unknown."""
    for family in families().values():
        if family.file_suffixes and checkpoint.endswith(family.file_suffixes):
            return family
    model_type = json.loads(config_path(checkpoint, revision).read_text()).get("model_type")
    by_model_type = {name: family for family in families().values() for name in family.model_types}
    if model_type not in by_model_type:
        known = ", ".join(by_model_type)
        raise ValueError(f"{checkpoint}: unknown model_type {model_type!r}; known: {known}")
    return by_model_type[model_type]


def config_path(checkpoint: str, revision: str | None) -> Path:
    """Return the path of a checkpoint's configuration, which is downloaded from the hub if the
    checkpoint is no folder."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint) / CONFIG_FILE
    return Path(hf_hub_download(checkpoint, CONFIG_FILE, revision=revision))
