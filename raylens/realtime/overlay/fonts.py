"""The fonts of this machine, and which of them draws a character.

The shipped one covers Latin, Greek, Cyrillic, Arabic and Hebrew. What it lacks is looked up in the
fonts that are installed, which are read once, when the first such character comes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import regex
from PIL import ImageFont, features

from raylens.realtime.overlay.coverage import BadFont, Coverage, read_coverage

SHIPPED = Path(__file__).with_name("DejaVuSans.ttf")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""Stands for a character that no font has."""
MAX_FONTS = 2000
"""Files that are read."""
_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_STRIKES = (109, 136, 128, 160, 96, 72, 64, 32)
"""Sizes that fonts of pictures, such as Noto Color Emoji, have."""
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_PICTURE = regex.compile(r"(?!.*\ufe0e)(?:.*\ufe0f|.*\p{Emoji_Presentation})", regex.DOTALL)
_DISLIKED = (
    "italic", "oblique", "bold", "black", "heavy", "light", "thin", "medium", "condensed",
    "narrow", "mono", "serif", "display", "looped", "kufi", "nastaliq", "lastresort", "blank",
)  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Face:
    """One face of a font file."""

    path: Path
    index: int = 0
    has_color: bool = False
    is_shaped: bool = True
    """Whether letters are joined and marks placed. Otherwise they stand side by side."""

    def at(self, size: int) -> SizedFace:
        """Return the face at ``size`` pixels per em; the shipped one if it is gone."""
        return _open_or_replace(self, size)

    def open(self, size: int) -> SizedFace:
        """Return the face at ``size`` pixels per em, and don't keep it. Raises ``OSError``."""
        return _open(self, size)


@dataclass(frozen=True)
class SizedFace:
    """A face at one size. ``scale`` is for what ``font`` draws, if it has fixed sizes only."""

    font: ImageFont.FreeTypeFont
    scale: float

    @cached_property
    def ascent(self) -> float:
        return self.font.getmetrics()[0] * self.scale

    @cached_property
    def descent(self) -> float:
        return self.font.getmetrics()[1] * self.scale

    def advance(self, text: str, is_rtl: bool) -> float:
        """Return how far the pen moves."""
        return self.font.getlength(text, direction=self.direction(is_rtl)) * self.scale

    def direction(self, is_rtl: bool) -> str | None:
        """Return Pillow's argument of this name, which its basic layout doesn't take."""
        if self.font.layout_engine == ImageFont.Layout.BASIC:
            return None
        return "rtl" if is_rtl else "ltr"


class Fonts:
    """The shipped font, ``extra`` font files, and those in ``folders``, in this order.

    None for ``folders`` means the system's own, and for ``is_shaped`` whether Pillow can.
    """

    def __init__(
        self,
        extra: Sequence[Path] = (),
        folders: Sequence[Path] | None = None,
        is_shaped: bool | None = None,
    ) -> None:
        self._extra = tuple(extra)
        self._folders = system_folders() if folders is None else tuple(folders)
        self.is_shaped = can_shape() if is_shaped is None else is_shaped
        self.primary = Face(SHIPPED, is_shaped=self.is_shaped)
        (own,) = read_coverage(SHIPPED)
        self._own = frozenset(own.characters.tolist())
        self.faces_of = lru_cache(8192)(self._faces_of)

    def load(self) -> None:
        """Read the installed fonts now, instead of when they are first needed: a second or less."""
        _ = self._fallback

    def _faces_of(self, cluster: str) -> tuple[tuple[str, Face], ...]:
        """Return a grapheme cluster in parts, each with the face that draws it.

        It is one part if a face has all of its characters. What no face has is replaced.
        """
        visible = _INVISIBLE.sub("", cluster)
        if not visible:
            return ()
        if _PICTURE.match(cluster) and (face := self._fallback.picture_face(visible)):
            return ((cluster, face),)
        if face := self._face_of(visible):
            return ((cluster, face),)
        if len(visible) == 1:
            return ((REPLACEMENT, self.primary),)
        return tuple(part for character in visible for part in self.faces_of(character))

    def _face_of(self, characters: str) -> Face | None:
        points = [*map(ord, characters)]
        if self._own.issuperset(points):
            return self.primary
        return self._fallback.face_of(points)

    @cached_property
    def _fallback(self) -> _Fallback:
        files = [*self._extra, *_preferred(_files(self._folders))]
        return _Fallback(files[:MAX_FONTS], self.is_shaped)


class _Fallback:
    """The first face, in the order of ``files``, that has a character."""

    def __init__(self, files: Sequence[Path], is_shaped: bool) -> None:
        self._is_shaped = is_shaped
        self._faces: list[Face] = []
        self._characters: list[Any] = []
        for path in files:
            self._add(path)
        self._first = np.full(sys.maxunicode + 1, -1, np.int32)
        self._first_picture = self._first.copy()
        for number in reversed(range(len(self._faces))):
            self._first[self._characters[number]] = number
            if self._faces[number].has_color:
                self._first_picture[self._characters[number]] = number
        _log.info("fonts for overlays: %d faces of %d files", len(self._faces), len(files))

    def face_of(self, points: Sequence[int]) -> Face | None:
        """Return a face that has all of these code points."""
        return self._common_face({int(self._first[point]) for point in points}, points)

    def picture_face(self, characters: str) -> Face | None:
        """Return a face of colored pictures that has all of these characters."""
        points = [*map(ord, characters)]
        return self._common_face({int(self._first_picture[points[0]])}, points)

    def _common_face(self, candidates: set[int], points: Sequence[int]) -> Face | None:
        if -1 in candidates:
            return None
        for number in sorted(candidates):
            if np.isin(points, self._characters[number]).all():
                return self._faces[number]
        return None

    def _add(self, path: Path) -> None:
        try:
            faces = read_coverage(path)
            for face in _told_apart(faces):
                known = Face(path, face.index, face.has_color, self._is_shaped)
                known.open(16)
                self._faces.append(known)
                self._characters.append(face.characters)
        except (BadFont, OSError) as error:
            _log.debug("font %s: %s", path, error)


def can_shape() -> bool:
    """Return whether Pillow has a shaper. Its wheels need the system's FriBidi for it."""
    return bool(features.check("raqm"))


def system_folders() -> tuple[Path, ...]:
    """Return where fonts are on Linux, macOS and Windows."""
    home = Path(os.environ.get("HOME", "/nonexistent"))
    data = Path(os.environ.get("XDG_DATA_HOME", home / ".local/share"))
    return (
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        data / "fonts",
        home / ".fonts",
        Path("/System/Library/Fonts"),
        Path("/Library/Fonts"),
        Path(os.environ.get("WINDIR", "/nonexistent")) / "Fonts",
    )


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for parent, _, names in os.walk(folder):
            yield from (Path(parent, name) for name in names if name.lower().endswith(_SUFFIXES))


def _preferred(files: Iterator[Path]) -> list[Path]:
    """Sort fonts: upright sans-serifs of normal weight first, and Noto's first among them."""

    def rank(path: Path) -> tuple[int, bool, str]:
        name = path.stem.lower().replace("sans-serif", "")
        return sum(word in name for word in _DISLIKED), not name.startswith("noto"), str(path)

    return sorted(files, key=rank)


def _told_apart(faces: Sequence[Coverage]) -> Iterator[Coverage]:
    """Yield the faces that have characters which those before them lack."""
    known: Any = np.empty(0, np.int32)
    for face in faces:
        if not np.isin(face.characters, known, assume_unique=True).all():
            known = np.union1d(known, face.characters)
            yield face


@lru_cache(64)
def _open_or_replace(face: Face, size: int) -> SizedFace:
    try:
        return _open(face, size)
    except OSError as error:
        _log.warning("font %s: %s", face.path, error)
        return _open(replace(face, path=SHIPPED, index=0), size)


def _open(face: Face, size: int) -> SizedFace:
    try:
        return SizedFace(_open_font(face, size), 1.0)
    except OSError as error:
        if "invalid pixel size" not in str(error):
            raise
    for strike in _STRIKES:
        try:
            return SizedFace(_open_font(face, strike), size / strike)
        except OSError:
            continue
    raise OSError(f"{face.path.name}: no known size")


def _open_font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    engine = ImageFont.Layout.RAQM if face.is_shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(face.path, size, face.index, layout_engine=engine)
