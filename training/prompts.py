"""How people ask: the phrasings that the pocket models are trained on, beside the exact queries of
a scene."""

from __future__ import annotations

import random

from models.pocket.scenes import CELLS, COLORS, KINDS

_VERBS = (
    "Describe",
    "Caption",
    "Please describe",
    "Can you describe",
    "Write a caption for",
    "Give a caption for",
    "Describe what you see in",
)
_NOUNS = ("image", "picture", "photo", "scene")
_MANNERS = {
    "short": (" briefly", " in one short sentence", " in short", " in a few words"),
    "normal": ("",),
    "long": (" in detail", " in great detail", " at length", " with all details"),
}
_FIXED = {
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
"""How Qwen2.5-VL is asked for boxes and points, after its cookbook on spatial understanding."""
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that describes images.",
    "Answer briefly.",
    "You can see pictures.",
)


def caption_request(length: str, rng: random.Random) -> str:
    """One way of asking for a caption of this length."""
    if rng.random() < 0.3:
        return _vary(rng.choice(_FIXED[length]), rng)
    verb = rng.choice(_VERBS)
    manner = rng.choice(_MANNERS[length])
    end = rng.choice(("?", "?", ".", "")) if verb.startswith("Can") else rng.choice((".", ".", ""))
    return _vary(
        f"{verb} {rng.choice(('this', 'this', 'the'))} {rng.choice(_NOUNS)}{manner}{end}", rng
    )


def _vary(text: str, rng: random.Random) -> str:
    return text[0].lower() + text[1:] if rng.random() < 0.15 else text


def vocabulary_corpus() -> list[str]:
    """Text in which every word that the models should hold as one token appears often enough."""
    rng = random.Random(0)
    lines = [caption_request(length, rng) for length in _FIXED for _ in range(1500)]
    lines += [line for length in _FIXED for line in _FIXED[length]] * 60
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
    """The same for JSON of boxes and points, with numbers up to ``max_number`` as one token each."""
    corpus = [f"[{number}, {number}]" for number in range(max_number + 1)] * 12
    corpus += [
        '[{"bbox_2d": [1, 2, 3, 4], "label": "red circle"}, {"point_2d": [1, 2], "label": "shape"}]',
        "[]",
    ] * 60
    corpus += [DETECT_PROMPT.format("circle"), POINT_PROMPT.format("circle")] * 60
    corpus += [f'"{word}"' for word in (*COLORS, *KINDS, "shape")] * 60
    corpus += ["system\n", "user\n", "assistant\n"] * 60
    return corpus
