"""How much of a GPU a model needs, from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.hub import default_revision, find_family
from models.memory import needed_bytes
from raylens.core.families import load_attribute
from raylens.engine.kv_cache import row_capacity


@dataclass(frozen=True)
class Footprint:
    """What a model keeps in memory, counted in values: bytes depend on the dtype."""

    parameters: int
    kv_values_per_token: int
    """Keys and values of one token, in all layers."""


def needed_gpu_bytes(
    footprint: Footprint, itemsize: int, batch: int, tokens: int, caches: int
) -> int:
    """Return the least part of a GPU's memory in which a model runs.

    Its values have ``itemsize`` bytes, ``batch`` answers run together, each of up to ``tokens``
    tokens with its pictures and its prompt, and its other caches take ``caches`` bytes.
    """
    kv_values = batch * row_capacity(tokens) * footprint.kv_values_per_token
    return needed_bytes(footprint.parameters * itemsize, caches, kv_values * itemsize)


def read_footprint(checkpoint: str, revision: str | None = None) -> Footprint:
    """Read the footprint of a checkpoint: a hub id, a folder or a file.

    Raises ``ValueError`` if its family is unknown or can't be sized, or if its configuration can't
    be read, and ``OSError`` if there is no such checkpoint.
    """
    revision = revision or default_revision(checkpoint)
    try:
        family = find_family(checkpoint, revision)
        if family.footprint is None:
            raise ValueError(f"the family {family.name} can't be sized")
        read: Callable[[str, str | None], Footprint] = load_attribute(family.footprint)
        return read(checkpoint, revision)
    except OSError:
        raise
    except Exception as error:  # the libraries raise many kinds for what they can't read
        raise ValueError(f"its configuration can't be read: {error}") from error
