"""Phrasings of requests for training, besides the exact queries of a scene."""

from __future__ import annotations

import random

from models.pocket.scenes import CELLS, COLORS, KINDS

_OPENINGS = (
    "Describe",
    "Caption",
    "Please describe",
    "Can you describe",
    "Write a caption for",
    "Give a caption for",
    "Describe what you see in",
)
_NOUNS = ("image", "picture", "photo", "scene")
_STYLES = {
    "short": (" briefly", " in one short sentence", " in short", " in a few words"),
    "normal": ("",),
    "long": (" in detail", " in great detail", " at length", " with all details"),
}
_COMPLETE_REQUESTS = {
    "short": (
        "Write a short caption for this image.",
        "Give a short caption.",
        "Short caption.",
        "Brief caption.",
    ),
    "normal": (
        "What is in this image?",
        "What's in this image?",
        "What is in this picture?",
        "What do you see?",
        "Describe it.",
        "Describe.",
        "Caption.",
    ),
    "long": (
        "Write a long caption for this image.",
        "Give a detailed caption.",
        "Long caption.",
        "Write a detailed description of this image.",
        "Give a detailed description of the picture.",
    ),
}
DETECT_PROMPT = (
    "Outline the position of each {} and output all the bbox coordinates in JSON format."
)
POINT_PROMPT = "Point to each {} and output all the point coordinates in JSON format."
"""Prompts of Qwen2.5-VL for boxes and points, from its cookbook on spatial understanding."""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that describes images.",
    "Answer briefly.",
    "You can see pictures.",
)


def caption_request(length: str, rng: random.Random) -> str:
    """Return a random request for a caption of this length."""
    if rng.random() < 0.3:
        return _vary(rng.choice(_COMPLETE_REQUESTS[length]), rng)
    opening = rng.choice(_OPENINGS)
    style = rng.choice(_STYLES[length])
    is_question = opening.startswith("Can")
    end = rng.choice(("?", "?", ".", "")) if is_question else rng.choice((".", ".", ""))
    article = rng.choice(("this", "this", "the"))
    noun = rng.choice(_NOUNS)
    return _vary(f"{opening} {article} {noun}{style}{end}", rng)


def _vary(text: str, rng: random.Random) -> str:
    """Start the text in lower case now and then."""
    return text[0].lower() + text[1:] if rng.random() < 0.15 else text


def vocabulary_corpus() -> list[str]:
    """Return text that repeats each word that should become one token.

    BPE merges frequent words first.
    """
    rng = random.Random(0)
    lines = [caption_request(length, rng) for length in _COMPLETE_REQUESTS for _ in range(1500)]
    lines += [line for length in _COMPLETE_REQUESTS for line in _COMPLETE_REQUESTS[length]] * 60
    lines += list(SYSTEM_PROMPTS) * 60
    lines += ["User: System: User:\nAssistant: "] * 200
    words = (
        *COLORS,
        *KINDS,
        *(word for cell in CELLS for word in cell.split()),
        "none",
        "yes",
        "no",
        "shape",
        "shapes",
    )
    lines += [f" {word} {word}" for word in words] * 100
    lines += [
        "How many shapes are there? 1 2 3 0",
        "What color is the circle? What color is the square? What color is the triangle?",
        "What shape is at the top left? What shape is at the bottom right?",
        "Is there a red circle? Is there an orange square?",
        " One shape on a gray background: a red circle at the top left",
        " Two shapes on a gray background: a red circle, an orange square and a blue square",
        " Three shapes on a gray background: a red circle, a blue square and an orange triangle",
    ] * 120
    return lines


def grounding_corpus(max_number: int) -> list[str]:
    """Return text that makes the keys of box and point JSON one token each.

    Numbers up to ``max_number`` also become one token each.
    """
    corpus = [f"[{number}, {number}]" for number in range(max_number + 1)] * 12
    corpus += [
        '[{"bbox_2d": [1, 2, 3, 4], "label": "red circle"}, '
        '{"point_2d": [1, 2], "label": "shape"}]',
        "[]",
    ] * 60
    corpus += [DETECT_PROMPT.format("circle"), POINT_PROMPT.format("circle")] * 60
    corpus += [f'"{word}"' for word in (*COLORS, *KINDS, "shape")] * 60
    corpus += ["system\n", "user\n", "assistant\n"] * 60
    return corpus
