"""The family ``smolvlm``: SmolVLM and SmolVLM2."""

from __future__ import annotations

from pathlib import Path

from raylens.core.families import Family
from raylens.core.types import Caption, Chat, Completion, Query

FAMILY = Family(
    name="smolvlm",
    load="models.smolvlm.model:load",
    footprint="models.chat_model:read_footprint",
    tasks=frozenset({Caption.name, Query.name, Chat.name, Completion.name}),
    aliases=("smolvlm2_500m_video",),
    pocket=Path(__file__).parents[1] / "pocket" / "smolvlm",
    model_types=("smolvlm", "idefics3"),
    verifier="models.smolvlm.verify:reference",
)
