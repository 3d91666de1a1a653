"""The family ``moondream``: Moondream 2 and Moondream 0.5B."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from raylens.core.families import Family, FamilySettings, HubFiles
from raylens.core.types import REASONING, Caption, Chat, Completion, Detect, Point, Query

TOKENIZER = "moondream/starmie-v1"
"""The tokenizer's own repository on the hub."""


class MoondreamSettings(FamilySettings):
    engine_only: ClassVar[frozenset[str]] = frozenset({"tokenizer_revision"})

    tokenizer_revision: str | None = None
    """Revision of :data:`TOKENIZER`."""


FAMILY = Family(
    name="moondream",
    load="models.moondream.model:load",
    footprint="models.moondream.model:read_footprint",
    tasks=frozenset(
        {
            Caption.name,
            Query.name,
            Detect.name,
            Point.name,
            Chat.name,
            Completion.name,
            REASONING,
        }
    ),
    settings=MoondreamSettings,
    runtimes=frozenset({"engine", "openai", "photon", "cloud"}),
    aliases=("moondream2", "moondream3-preview", "moondream:1.8b"),
    pocket=Path(__file__).parents[1] / "pocket" / "moondream",
    model_types=("moondream1",),
    file_suffixes=(".mf", ".mf.gz"),
    default_revisions={"vikhyatk/moondream2": "2025-06-21"},
    hub_files=(
        HubFiles(("config.json", "model.safetensors")),
        HubFiles(("tokenizer.json",), TOKENIZER, "tokenizer_revision"),
    ),
    verifier="models.moondream.verify:reference",
)
