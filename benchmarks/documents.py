"""Drawn documents with small text: pictures in which nothing should be changed."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    *(
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "invoices",
        "total",
        "1,204.50",
    ),
    *(
        "due",
        "on",
        "2024-03-17",
        "and",
        "page",
        "7",
        "of",
        "12",
        "shows",
        "annual",
        "reports",
        "mountain",
        "roads",
    ),
)
INKS = ((0, 0, 0), (30, 30, 30), (60, 60, 70), (20, 40, 110), (120, 20, 20))
PAPERS = ((255, 255, 255), (255, 255, 255), (250, 250, 248), (244, 244, 244), (252, 248, 238))


def document(rng: random.Random) -> NDArray[np.uint8]:
    """A page of (height, width, 3) RGB pixels: a heading, columns of text of 9 to 14 pixels, a
    table, a chart."""
    width, height = rng.randint(500, 1000), rng.randint(600, 1200)
    page = Image.new("RGB", (width, height), rng.choice(PAPERS))
    pen, ink, size, margin = (
        ImageDraw.Draw(page),
        rng.choice(INKS),
        rng.randint(9, 14),
        rng.randint(20, 60),
    )
    pen.text(
        (margin, margin),
        " ".join(rng.sample(WORDS, 3)).title(),
        ink,
        ImageFont.load_default(2 * size),
    )
    y = margin + 4 * size
    while y < height - margin - 14 * size:
        block = rng.choice((_paragraph, _paragraph, _table, _chart))
        y = block(pen, rng, (margin, y, width - margin), size, ink)
    return np.asarray(page)


Area = tuple[int, int, int]
"""(left, top, right) in pixels."""


def _paragraph(
    pen: ImageDraw.ImageDraw, rng: random.Random, area: Area, size: int, ink: tuple[int, ...]
) -> int:
    left, y, right = area
    font = ImageFont.load_default(size)
    for _ in range(rng.randint(2, 7)):
        line = ""
        while pen.textlength(line, font) < right - left - 8 * size:
            line += rng.choice(WORDS) + " "
        pen.text((left, y), line, ink, font)
        y += round(1.4 * size)
    return y + size


def _table(
    pen: ImageDraw.ImageDraw, rng: random.Random, area: Area, size: int, ink: tuple[int, ...]
) -> int:
    left, top, right = area
    rows, columns = rng.randint(2, 5), rng.randint(2, 5)
    font, row_height, column_width = (
        ImageFont.load_default(size),
        2 * size,
        (right - left) // columns,
    )
    pen.rectangle(
        (left, top, left + columns * column_width, top + row_height), fill=(200, 210, 225)
    )
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * column_width, top + row * row_height
            pen.rectangle((x, y, x + column_width, y + row_height), outline=ink)
            pen.text((x + 4, y + size // 2), rng.choice(WORDS), ink, font)
    return top + rows * row_height + size


def _chart(
    pen: ImageDraw.ImageDraw, rng: random.Random, area: Area, size: int, ink: tuple[int, ...]
) -> int:
    left, top, right = area
    bottom, count = top + 8 * size, rng.randint(3, 8)
    step = (right - left) // count
    for number in range(count):
        color = tuple(rng.randint(40, 220) for _ in range(3))
        x = left + number * step
        pen.rectangle((x, bottom - rng.randint(size, 8 * size), x + step // 2, bottom), fill=color)
    pen.line((left, bottom, right, bottom), fill=ink, width=2)
    return bottom + 2 * size
