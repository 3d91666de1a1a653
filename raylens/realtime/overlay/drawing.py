"""Drawing of results on one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from raylens.core.types import Location, Region
from raylens.realtime.overlay.bidi import RIGHT_TO_LEFT_MARK, is_rtl
from raylens.realtime.overlay.blending import (
    Patch,
    Pixels,
    Rectangle,
    blend,
    fill,
    make_patch,
    outline,
)
from raylens.realtime.overlay.colors import (
    BLACK,
    DARK_RED,
    GREEN,
    RED,
    WHITE,
    Color,
    text_color,
    text_opacity,
)
from raylens.realtime.overlay.labels import LabelSpace
from raylens.realtime.overlay.typesetting import (
    DrawnText,
    PlacedPatch,
    Typesetter,
    shared_typesetter,
)
from raylens.realtime.overlay.wrapping import (
    MAX_CHARACTERS,
    TextLine,
    clean,
    clean_line,
    shorten,
)

FILL_SHARE = 0.15
"""Opacity of a box's inside, as a share of its lines'."""
BAR_SHARE = 0.7
"""Opacity of the bar behind text, as a share of the text's."""
MAX_BAR = 1 / 3
"""Largest share of the frame's height that the bar takes."""
MAX_LABEL = 0.4
"""Largest share of the frame's width that a label takes."""
MAX_LABEL_HEIGHT = 1 / 6
"""Largest share of the frame's height that a label takes."""
MIN_TEXT = 9
"""Pixels per em of the smallest text, if the frame has room for it."""
_TEXT_SHARE = 0.04
"""Size of text in em, as a share of the frame's height, at a scale of 1."""
_MIN_SCALED_TEXT = 12
"""Pixels per em of the smallest text at a scale of 1."""
_SAMPLE = 500
"""Characters of a text whose fonts decide how high its lines are."""
_OVERSAMPLING = 8


@dataclass(frozen=True)
class _BarStyle:
    """How text is set on the bar. ``size`` is in pixels per em."""

    size: int
    padding: int
    most: int
    """Lines that the bar has room for."""


class Overlay:
    """Draws on one frame. ``opacity`` is from 0 to 1, and ``font_scale`` about 1.

    It draws on a copy, or on ``frame`` itself if it is ``in_place``: that must be writable and
    contiguous. Labels of boxes and points keep clear of text that is drawn first.
    """

    def __init__(
        self,
        frame: Pixels,
        opacity: float,
        font_scale: float,
        *,
        typesetter: Typesetter | None = None,
        in_place: bool = False,
    ) -> None:
        if in_place and not (frame.flags.writeable and frame.flags.c_contiguous):
            raise ValueError("a frame that is drawn on in place must be writable and contiguous")
        self._pixels = frame if in_place else np.array(frame, np.uint8, order="C")
        self._opacity = min(max(0.0, opacity), 1.0)
        self._typesetter = typesetter or shared_typesetter()
        self._height, self._width = frame.shape[:2]
        # A tall frame is as wide as few words, so that its width counts.
        side = min(self._height, 0.75 * self._width)
        self._line = max(1, -int(-side // 200))
        self._edge = max(1, self._line // 3)
        size = max(MIN_TEXT, font_scale * max(_MIN_SCALED_TEXT, _TEXT_SHARE * side))
        self._size = size
        self._bar = int(MAX_BAR * self._height)
        self._label_size = self._typesetter.largest_fit(size, int(MAX_LABEL_HEIGHT * self._height))
        self._labels = LabelSpace(self._width, self._height)
        self._is_visible = self._opacity > 0 and self._pixels.size > 0

    def render(self) -> Pixels:
        """Return the frame with what was drawn on it."""
        return self._pixels

    def boxes(
        self,
        regions: Sequence[Region],
        numbers: Sequence[int] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Draw green boxes with a light fill, and labels above them, or below at the top edge.

        A label is ``#`` and a number, 1, 2, 3… if none are given, and then a name if there is one.
        """
        if not self._is_visible:
            return
        boxes = [self._rectangle(region) for region in regions]
        for box in boxes:
            fill(self._pixels, box.grow(-self._line), GREEN, FILL_SHARE * self._opacity)
        for box in boxes:
            outline(self._pixels, box.grow(self._edge), self._edge, BLACK, self._opacity)
        for box in boxes:
            outline(self._pixels, box, self._line, GREEN, self._opacity)
        for box, text in zip(boxes, _label_texts(len(boxes), numbers, names), strict=True):
            label = self._label(*text, GREEN)
            place = self._labels.place_beside_box(box.grow(self._edge), label.width, label.height)
            blend(self._pixels, label, place.left, place.top)

    def points(
        self,
        locations: Sequence[Location],
        numbers: Sequence[int] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Draw red dots with a white rim, and labels beside them, as those of boxes."""
        if not self._is_visible:
            return
        core = max(2, 2 * self._line)
        dot = _draw_dot(core, max(1, core // 3), self._edge, self._opacity)
        places = [self._place(location.x, location.y) for location in locations]
        reach = dot.width // 2
        areas = [Rectangle(x, y, x + 1, y + 1).grow(reach) for x, y in places]
        for area in areas:
            blend(self._pixels, dot, area.left, area.top)
            self._labels.add_mark(area)
        for area, text in zip(areas, _label_texts(len(areas), numbers, names), strict=True):
            label = self._label(*text, DARK_RED)
            place = self._labels.place_beside_dot(area, label.width, label.height)
            blend(self._pixels, label, place.left, place.top)

    def text(self, text: str) -> None:
        """Write text on a dark bar at the bottom, at most a third of the frame high.

        What doesn't fit is cut off, and ends with an ellipsis. Without text there is no bar.
        """
        if not self._is_visible:
            return
        text = clean(text)
        style = self._style(1, text)
        self._write(self._wrap(text, style.most, style), style)

    def query(self, question: str, answer: str) -> None:
        """Write ``Q: …`` and ``A: …``. The question gets at most a third of the lines."""
        if not self._is_visible:
            return
        question, answer = _prefix("Q: ", clean_line(question)), _prefix("A: ", clean(answer))
        style = self._style(2, question, answer)
        asked = self._wrap(question, max(1, style.most // 3), style)
        answered = self._wrap(answer, max(1, style.most - len(asked)), style)
        self._write((*asked, *answered), style)

    def _style(self, least: int, *texts: str) -> _BarStyle:
        """Return a style for these texts that has room for ``least`` lines."""
        sample = tuple(TextLine(text[:_SAMPLE].replace("\n", " ")) for text in texts)
        size = self._typesetter.largest_fit(self._size, (self._bar - 2) // least, sample)
        pitch = self._typesetter.extent(sample, size).height
        padding = max(1, min(round(size / 5), (self._bar - least * pitch) // 2))
        return _BarStyle(size, padding, max(least, (self._bar - 2 * padding) // pitch))

    def _wrap(self, text: str, most: int, style: _BarStyle) -> tuple[TextLine, ...]:
        width = max(1, self._width - 2 * style.padding)
        return self._typesetter.wrap(text, width, most, style.size)

    def _write(self, lines: tuple[TextLine, ...], style: _BarStyle) -> None:
        """Draw the bar and the lines on it."""
        if not lines:
            return
        extent = self._typesetter.extent(lines, style.size)
        height = min(self._bar, len(lines) * extent.height + 2 * style.padding)
        # A font that comes late in a text may be higher than those that lines were counted with.
        pitch = min(extent.height, max(1, (height - 2 * style.padding) // len(lines)))
        bar = Rectangle(0, self._height - height, self._width, self._height)
        opacity = text_opacity(self._opacity)
        fill(self._pixels, bar, BLACK, BAR_SHARE * opacity)
        self._labels.block(bar)
        inside = self._pixels[bar.top :]
        for number, line in enumerate(lines):
            drawn = self._typesetter.line_patch(line, style.size, WHITE, opacity)
            left = style.padding + drawn.left
            if line.is_rtl:
                left = self._width - style.padding - drawn.patch.width
            baseline = style.padding + number * pitch + extent.ascent
            blend(inside, drawn.patch, left, baseline + drawn.top)

    def _label(self, number: str, name: str, ground: Color) -> Patch:
        opacity = text_opacity(self._opacity)
        size, most = self._label_size, round(MAX_LABEL * self._width)
        key = (number, name, size, most, ground, opacity)

        def make() -> PlacedPatch:
            typesetter = self._typesetter
            room = most - typesetter.advance(f"{number} ", size)
            short = shorten(clean_line(name), room, lambda part: typesetter.advance(part, size))
            return PlacedPatch(
                _draw_label(typesetter, f"{number} {short}".strip(), size, ground, opacity), 0, 0
            )

        return self._typesetter.patches.get(key, make).patch

    def _place(self, x: float, y: float) -> tuple[int, int]:
        """Return the pixel of a point that is normalized to [0, 1]; the next one if it is not."""
        # In this order, what is not a number becomes 0.
        x, y = (min(max(0.0, value), 1.0) for value in (x, y))
        return round(x * (self._width - 1)), round(y * (self._height - 1))

    def _rectangle(self, region: Region) -> Rectangle:
        """Return the pixels of a region, which is drawn even if it is empty."""
        left, top = self._place(region.x_min, region.y_min)
        right, bottom = self._place(region.x_max, region.y_max)
        least = 2 * self._line
        left = max(0, min(left, self._width - least))
        top = max(0, min(top, self._height - least))
        return Rectangle(
            left, top, max(left + least, right + 1), max(top + least, bottom + 1)
        ).within(self._width, self._height)


def _prefix(prefix: str, text: str) -> str:
    """Return text with a prefix that doesn't change the text's direction."""
    return f"{RIGHT_TO_LEFT_MARK if is_rtl(text) else ''}{prefix}{text}"


def _label_texts(count: int, numbers: Sequence[int], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return number and name of each label. Raises ``ValueError`` if there aren't ``count``."""
    return [
        (f"#{number}", name[:MAX_CHARACTERS])
        for number, name in zip(numbers or range(1, count + 1), names or [""] * count, strict=True)
    ]


@lru_cache(64)
def _draw_dot(core: int, rim: int, edge: int, opacity: float) -> Patch:
    """Draw a disc of ``core`` pixels radius, and a white and a dark ring around it."""
    reach = core + rim + edge
    side = 2 * reach + 1
    image = np.zeros((side * _OVERSAMPLING, side * _OVERSAMPLING, 4), np.float32)
    middle = (side * _OVERSAMPLING - 1) / 2
    y, x = np.ogrid[: len(image), : len(image)]
    distance = np.hypot(x - middle, y - middle) / _OVERSAMPLING
    for radius, color in ((reach, BLACK), (core + rim, WHITE), (core, RED)):
        image[distance < radius + 0.5] = (*color, 1)
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return make_patch(image[..., :3], image[..., 3], opacity)


def _draw_label(
    typesetter: Typesetter, text: str, size: int, ground: Color, opacity: float
) -> Patch:
    """Draw text on a plate with a thin dark edge."""
    color = text_color(ground)
    line = TextLine(text)
    drawn = typesetter.draw(line, size, color)
    extent = typesetter.extent((line,), size)
    padding = max(1, size // 8)
    edge = max(1, size // 24)
    height = extent.height + 2 * edge
    width = drawn.alpha.shape[1] + 2 * (padding + edge)
    plate = np.zeros((height, width, 3), np.float32)
    plate[edge:-edge, edge:-edge] = ground
    _paste(plate, drawn, padding + edge, edge + extent.ascent + drawn.top)
    return make_patch(plate, np.ones((height, width), np.float32), opacity)


def _paste(plate: NDArray[np.float32], drawn: DrawnText, left: int, top: int) -> None:
    """Put text on a plate; what reaches beyond it is left out."""
    first = max(0, -top)
    last = min(len(drawn.alpha), len(plate) - top)
    alpha = drawn.alpha[first:last, :, np.newaxis]
    part = plate[top + first : top + last, left : left + drawn.alpha.shape[1]]
    part[:] = part * (1 - alpha) + drawn.color[first:last]
