"""Text as pictures, kept for the frames that show it again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from raylens.realtime.overlay import bidi
from raylens.realtime.overlay.blending import Patch, make_patch
from raylens.realtime.overlay.colors import Color
from raylens.realtime.overlay.fonts import Face, Fonts
from raylens.realtime.overlay.joining import join_letters
from raylens.realtime.overlay.wrapping import TextLine, split_clusters, wrap

CACHE_BYTES = 64_000_000
"""Memory of drawn text."""
_MAX_ASCENT, _MAX_DESCENT = 1.2, 0.45
"""Bounds of a line's height, in em. Some fonts state far more than their letters need."""
_OVERSHOOT = 0.5
"""Room around a line for marks, in em."""


@dataclass(frozen=True)
class Run:
    """Part of a line in one font and one direction, in the order of reading."""

    clusters: tuple[str, ...]
    face: Face
    is_rtl: bool

    @property
    def text(self) -> str:
        """What Pillow draws. Its basic layout is from left to right."""
        if self.is_rtl and not self.face.is_shaped:
            return bidi.mirror(self.clusters)
        return "".join(self.clusters)


@dataclass(frozen=True)
class Extent:
    """How much room a line needs above and below its baseline."""

    ascent: int
    descent: int

    @property
    def height(self) -> int:
        return self.ascent + self.descent


@dataclass(frozen=True)
class DrawnText:
    """Coverage of a line's ink, and where it is from the pen's start on the baseline.

    ``color`` is premultiplied (H, W, 3), 0 to 255, and ``alpha`` is (H, W), 0 to 1.
    """

    color: NDArray[np.float32]
    alpha: NDArray[np.float32]
    left: int
    top: int


@dataclass(frozen=True)
class PlacedPatch:
    """A patch, and where it is from the pen's start on the baseline."""

    patch: Patch
    left: int
    top: int


class PatchCache:
    """The patches that were used last. Safe to share among threads."""

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self._capacity = capacity
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, PlacedPatch] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], PlacedPatch]) -> PlacedPatch:
        """Return the patch of ``key``, made if it isn't known."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        entry = make()
        with self._lock:
            if key not in self._entries:
                self._entries[key] = entry
                self.nbytes += entry.patch.nbytes
            while self.nbytes > self._capacity:
                self.nbytes -= self._entries.popitem(last=False)[1].patch.nbytes
        return entry


class Typesetter:
    """Measures, wraps and draws text in the fonts of this machine. Safe to share among threads.

    ``extra_fonts`` are files that are asked before the installed fonts, which ``folders`` hold.
    None for ``is_shaped`` means to shape letters if Pillow can.
    """

    def __init__(
        self,
        extra_fonts: Sequence[Path] = (),
        folders: Sequence[Path] | None = None,
        is_shaped: bool | None = None,
    ) -> None:
        self._fonts = Fonts(extra_fonts, folders, is_shaped)
        self.patches = PatchCache()
        self.advance = lru_cache(16384)(self._advance)
        self.wrap = lru_cache(256)(self._wrap)
        self.extent = lru_cache(1024)(self._extent)
        self.largest_fit = lru_cache(256)(self._largest_fit)

    def load_fonts(self) -> None:
        """Read the installed fonts now, instead of when they are first needed: a second or less."""
        self._fonts.load()

    def _advance(self, text: str, size: int) -> float:
        """Return the width of a text in pixels."""
        return sum(_run_advance(run, size) for run in self._runs(TextLine(text)))

    def _wrap(self, text: str, width: float, most: int, size: int) -> tuple[TextLine, ...]:
        """Break clean text into lines of at most ``width`` pixels."""
        return wrap(text, width, most, size, lambda part: self.advance(part, size))

    def _largest_fit(self, size: float, height: int, lines: tuple[TextLine, ...] = ()) -> int:
        """Return a size in pixels per em: smaller if any of the lines is higher than ``height``."""
        whole = max(1, round(size))
        actual = self.extent(lines, whole).height
        if actual > height:
            whole = max(1, math.ceil(whole * height / actual))
        while whole > 1 and self.extent(lines, whole).height > height:
            whole -= 1
        return whole

    def _extent(self, lines: tuple[TextLine, ...], size: int) -> Extent:
        """Return the room that each of some lines needs."""
        faces = {run.face for line in lines for run in self._runs(line)} | {self._fonts.primary}
        sized = [face.at(size) for face in faces]
        return Extent(
            math.ceil(min(max(face.ascent for face in sized), _MAX_ASCENT * size)),
            math.ceil(min(max(face.descent for face in sized), _MAX_DESCENT * size)),
        )

    def draw(self, line: TextLine, size: int, color: Color) -> DrawnText:
        """Draw a line on nothing."""
        runs = self._runs(line)
        margin = math.ceil(_OVERSHOOT * size) + 2
        width = math.ceil(sum(_run_advance(run, size) for run in runs)) + 2 * margin
        baseline = math.ceil(_MAX_ASCENT * size) + margin
        canvas = (width, baseline + math.ceil(_MAX_DESCENT * size) + margin)
        mask = Image.new("L", canvas)
        pictures = Image.new("RGBA", canvas)
        pen = float(margin)
        for run in runs:
            if run.face.has_color:
                _draw_picture(pictures, run, size, pen, baseline, color)
            else:
                sized = run.face.at(size)
                ImageDraw.Draw(mask).text(
                    (pen, baseline), run.text, 255, sized.font, "ls",
                    direction=sized.direction(run.is_rtl),
                )  # fmt: skip
            pen += _run_advance(run, size)
        return _crop(mask, pictures, color, margin, baseline)

    def line_patch(self, line: TextLine, size: int, color: Color, opacity: float) -> PlacedPatch:
        """Return a line, ready for blending."""

        def make() -> PlacedPatch:
            drawn = self.draw(line, size, color)
            return PlacedPatch(make_patch(drawn.color, drawn.alpha, opacity), drawn.left, drawn.top)

        return self.patches.get((line, size, color, opacity), make)

    def _runs(self, line: TextLine) -> list[Run]:
        """Return the runs of a line from left to right."""
        clusters = split_clusters(line.text)
        if not self._fonts.is_shaped:
            clusters = join_letters(clusters)
        levels = bidi.resolve_levels(clusters, line.is_rtl)
        parts = [
            (text, face, level)
            for cluster, level in zip(clusters, levels, strict=True)
            for text, face in self._fonts.faces_of(cluster)
        ]
        runs = [
            (Run(tuple(text for text, _, _ in group), face, level % 2 == 1), level)
            for (face, level), group in _grouped(_with_spaces_joined(parts))
        ]
        return [runs[index][0] for index in bidi.visual_order([level for _, level in runs])]


_Part = tuple[str, Face, int]


def _grouped(parts: list[_Part]) -> list[tuple[tuple[Face, int], list[_Part]]]:
    return [(key, list(group)) for key, group in groupby(parts, lambda part: part[1:])]


def _with_spaces_joined(parts: list[_Part]) -> list[_Part]:
    """Return parts with each space in the font before it, so that it doesn't end a run."""
    joined: list[_Part] = []
    for text, face, level in parts:
        if text == " " and joined and not joined[-1][1].has_color:
            face = joined[-1][1]
        joined.append((text, face, level))
    return joined


def _run_advance(run: Run, size: int) -> float:
    return run.face.at(size).advance(run.text, run.is_rtl)


def _draw_picture(
    pictures: Image.Image, run: Run, size: int, pen: float, baseline: int, color: Color
) -> None:
    """Draw a run of a font with colors, at the size that it has, and scale that."""
    sized = run.face.at(size)
    left, top, right, bottom = sized.font.getbbox(
        run.text, anchor="ls", direction=sized.direction(run.is_rtl)
    )
    drawn = Image.new("RGBA", (max(1, math.ceil(right - left)), max(1, math.ceil(bottom - top))))
    ImageDraw.Draw(drawn).text(
        (-left, -top), run.text, (*color, 255), sized.font, "ls",
        embedded_color=True, direction=sized.direction(run.is_rtl),
    )  # fmt: skip
    scaled = (max(1, round(drawn.width * sized.scale)), max(1, round(drawn.height * sized.scale)))
    if scaled != drawn.size:
        drawn = drawn.resize(scaled, Image.Resampling.BOX)
    place = (round(pen + left * sized.scale), round(baseline + top * sized.scale))
    pictures.alpha_composite(drawn, (max(0, place[0]), max(0, place[1])))


def _crop(
    mask: Image.Image, pictures: Image.Image, color: Color, pen: int, baseline: int
) -> DrawnText:
    """Return what has ink of a canvas with letters and pictures."""
    boxes = [box for box in (mask.getbbox(), pictures.getbbox()) if box]
    lefts, tops, rights, bottoms = zip(*(boxes or [(0, 0, 1, 1)]), strict=True)
    box = (min(lefts), min(tops), max(rights), max(bottoms))
    alpha = np.asarray(mask.crop(box), np.float32) / np.float32(255)
    colors = alpha[..., np.newaxis] * np.array(color, np.float32)
    if pictures.getbbox():
        rgba = np.asarray(pictures.crop(box), np.float32)
        over = rgba[..., 3] / np.float32(255)
        colors = colors * (1 - over[..., np.newaxis]) + rgba[..., :3] * over[..., np.newaxis]
        alpha = alpha * (1 - over) + over
    return DrawnText(colors, alpha, box[0] - pen, box[1] - baseline)


@lru_cache(1)
def shared_typesetter() -> Typesetter:
    """Return the one that overlays use if they are given none."""
    return Typesetter()
