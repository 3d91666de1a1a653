"""Recorded numbers of Moondream's reference implementation, and the requests that they answer.

The reference is ``moondream/torch`` of github.com/vikhyat/moondream in float32, with the random
weights of :func:`testing.checkpoints.random_moondream`. It ties its grid to its layer count and has
1,024 size bins; both were made configurable for the recording.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from models.moondream.model import Moondream
from raylens.core.types import (
    Caption,
    Detect,
    Length,
    Location,
    Point,
    Query,
    Region,
    Task,
)
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.sequence import GenerationSequence
from testing.exactness import prepare_sequences, request
from testing.pictures import random_pixels

DATA = Path(__file__).parent / "data"
RECORDED: dict[str, Any] = json.loads((DATA / "moondream.json").read_text())
"""Features, logits and answers of the two configurations in ``testing.checkpoints.MOONDREAMS``."""
TENSORS: dict[str, Any] = json.loads((DATA / "moondream_tensors.json").read_text())
"""Names and shapes of the tensors in the published checkpoints."""


def task_of(recorded: dict[str, Any]) -> Task:
    match recorded["kind"]:
        case "caption":
            return Caption(Length(recorded["length"]))
        case "detect":
            return Detect(recorded["object"], recorded["max_objects"])
        case "point":
            return Point(recorded["object"], recorded["max_objects"])
    spatial_refs = tuple(spatial_ref(values) for values in recorded.get("places", ()))
    return Query(recorded["question"], recorded["kind"] == "reasoning", spatial_refs)


def spatial_ref(values: list[float]) -> Location | Region:
    return Location(*values) if len(values) == 2 else Region(*values)


def recorded_sequences(model: Moondream, recorded: dict[str, Any]) -> list[GenerationSequence]:
    pictures = [random_pixels(*recorded["picture"])] if "picture" in recorded else []
    max_tokens = recorded.get("max_tokens", 4)
    return prepare_sequences(model, request(task_of(recorded), max_tokens=max_tokens), pictures)


def answer(model: Moondream, sequence: GenerationSequence) -> Any:
    """Return the answer of a finished sequence in the reference's format."""
    findings = model.parse_findings(sequence.prompt, sequence.output_ids)
    if findings.regions is not None:
        return [rounded(box.x_min, box.y_min, box.x_max, box.y_max) for box in findings.regions]
    if findings.locations is not None:
        return [rounded(point.x, point.y) for point in findings.locations]
    text = model.tokenizer.decode([output_id for output_id in sequence.output_ids if output_id > 0])
    if findings.reasoning is None:
        return text
    grounding = [
        {
            "start_idx": part.start,
            "end_idx": part.end,
            "points": [[point.x, point.y] for point in part.points],
        }
        for part in findings.reasoning.groundings
    ]
    return {"reasoning": {"text": findings.reasoning.text, "grounding": grounding}, "answer": text}


def rounded(*coordinates: float) -> list[float]:
    return [round(coordinate, 6) for coordinate in coordinates]


def expected_answer(recorded: dict[str, Any]) -> Any:
    expected = recorded["answer"]
    if isinstance(expected, dict) and "reasoning" not in expected:
        return expected.get("answer", expected.get("caption"))
    return expected


def run(
    model: Moondream,
    waiting: list[list[GenerationSequence]],
    seed: int = 0,
    batch: int = 6,
    limits: EngineLimits | None = None,
) -> None:
    """Run requests that arrive at random, in small slices, with picture and prefix reuse."""
    rng = random.Random(seed)
    engine = Engine(
        model,
        limits
        or EngineLimits(max_batch_size=batch, max_prefill_tokens=16, max_prefill_slice_s=0.0),
    )
    waiting = list(waiting)
    while waiting or engine.has_work:
        for _ in range(rng.choice((0, 1, 2))):
            if waiting:
                engine.scheduler.add(waiting.pop(0))
        assert not [output.error for output in engine.step() if output.error]
