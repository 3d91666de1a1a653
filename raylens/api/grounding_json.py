"""What an answer says beside its text, as JSON: the Moondream dialect's shapes, which the others
take over."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raylens.core.errors import ModelFailed
from raylens.core.types import Findings, Reasoning


def findings_as_json(found: Findings | None) -> dict[str, Any]:
    """``{"objects": [{x_min, y_min, x_max, y_max}]}``, or ``{"points": [{x, y}]}``. Raises
    ``ModelFailed`` where an answer ended without either."""
    if found is not None and found.regions is not None:
        return {"objects": [asdict(region) for region in found.regions]}
    if found is not None and found.locations is not None:
        return {"points": [asdict(location) for location in found.locations]}
    raise ModelFailed("the answer ended early")


def reasoning_as_json(reasoning: Reasoning) -> dict[str, Any]:
    """As the client reads it: points are [x, y]."""
    grounding = [
        {
            "start_idx": part.start,
            "end_idx": part.end,
            "points": [[point.x, point.y] for point in part.points],
        }
        for part in reasoning.groundings
    ]
    return {"text": reasoning.text, "grounding": grounding}
