"""Drawn documents with small text: pictures that enhancement should leave alone."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WORDS = (
    *("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while"),
    *("invoices", "total", "1,204.50", "due", "on", "2024-03-17", "and", "page", "7", "of"),
    *("12", "shows", "annual", "reports", "mountain", "roads"),
)  # fmt: skip
INKS = ((0, 0, 0), (30, 30, 30), (60, 60, 70), (20, 40, 110), (120, 20, 20))
PAPERS = ((255, 255, 255), (255, 255, 255), (250, 250, 248), (244, 244, 244), (252, 248, 238))


def draw_document(rng: random.Random) -> NDArray[np.uint8]:
    """Draw a page of (height, width, 3) RGB pixels.

    It has a heading, then paragraphs, tables and charts, with text of 9 to 14 pixels.
    """
    width = rng.randint(500, 1000)
    height = rng.randint(600, 1200)
    page = Image.new("RGB", (width, height), rng.choice(PAPERS))
    pen = ImageDraw.Draw(page)
    ink = rng.choice(INKS)
    size = rng.randint(9, 14)
    margin = rng.randint(20, 60)
    heading = " ".join(rng.sample(WORDS, 3)).title()
    pen.text((margin, margin), heading, ink, ImageFont.load_default(2 * size))
    y = margin + 4 * size
    while y < height - margin - 14 * size:
        draw_block = rng.choice((_draw_paragraph, _draw_paragraph, _draw_table, _draw_chart))
        y = draw_block(pen, rng, (margin, y, width - margin), size, ink)
    return np.asarray(page)


Area = tuple[int, int, int]
"""(left, top, right) in pixels."""


def _draw_paragraph(
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


def _draw_table(
    pen: ImageDraw.ImageDraw, rng: random.Random, area: Area, size: int, ink: tuple[int, ...]
) -> int:
    left, top, right = area
    rows = rng.randint(2, 5)
    columns = rng.randint(2, 5)
    font = ImageFont.load_default(size)
    row_height = 2 * size
    column_width = (right - left) // columns
    pen.rectangle(
        (left, top, left + columns * column_width, top + row_height), fill=(200, 210, 225)
    )
    for row in range(rows):
        for column in range(columns):
            x = left + column * column_width
            y = top + row * row_height
            pen.rectangle((x, y, x + column_width, y + row_height), outline=ink)
            pen.text((x + 4, y + size // 2), rng.choice(WORDS), ink, font)
    return top + rows * row_height + size


def _draw_chart(
    pen: ImageDraw.ImageDraw, rng: random.Random, area: Area, size: int, ink: tuple[int, ...]
) -> int:
    left, top, right = area
    bottom = top + 8 * size
    count = rng.randint(3, 8)
    step = (right - left) // count
    for number in range(count):
        color = tuple(rng.randint(40, 220) for _ in range(3))
        x = left + number * step
        pen.rectangle((x, bottom - rng.randint(size, 8 * size), x + step // 2, bottom), fill=color)
    pen.line((left, bottom, right, bottom), fill=ink, width=2)
    return bottom + 2 * size
