"""File formats, recognized by their first bytes.

An error message can thus name the actual format of a file that is not a supported picture.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

from raylens.core.errors import UnsupportedMedia

HEIC = "HEIC"
HAS_HEIC = find_spec("pillow_heif") is not None
"""Whether HEIC can be decoded: by pillow-heif, which the extra ``heic`` installs."""
SUPPORTED = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", *([HEIC] if HAS_HEIC else []))
"""The picture formats that can be decoded."""

_MAGIC: tuple[tuple[str, bytes], ...] = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WebP", rb"RIFF....WEBP"),
    ("GIF", rb"GIF8[79]a"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("TIFF", rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
    ("AVIF", rb"....ftypavi[fs]"),
    (HEIC, rb"....ftyp(hei[cmsx]|hev[cx]|mif1|msf1)"),
    ("a JPEG XL picture", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("a JPEG 2000 picture", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("a Photoshop file", rb"8BPS"),
    ("an icon", rb"\0\0\x01\0|\0\0\x02\0[^\0]"),
    ("a PDF document", rb"%PDF-"),
    ("an SVG drawing", rb"\s*(<\?xml.{0,400})?(<!--.{0,400})?<svg[\s>]"),
    ("an HTML page", rb"\s*<(!doctype html|html)"),
    ("a WAVE sound", rb"RIFF....WAVE"),
    ("an AVI video", rb"RIFF....AVI "),
    ("an MP4 or QuickTime video", rb"....ftyp"),
    ("a Matroska or WebM video", rb"\x1a\x45\xdf\xa3"),
    ("a ZIP archive or an Office document", rb"PK\x03\x04"),
    ("gzip data", rb"\x1f\x8b"),
    ("JSON", rb"\s*[\[{]\s*[\"\[{]"),
)
"""Format names and the pattern that a file of the format begins with; the first match counts."""
_PATTERNS = [(name, re.compile(pattern, re.DOTALL | re.IGNORECASE)) for name, pattern in _MAGIC]


def sniff(data: bytes) -> str | None:
    """Return one of ``SUPPORTED``, another file format in words, or None if it is unknown."""
    head = data[:1024]
    return next((name for name, pattern in _PATTERNS if pattern.match(head)), None)


VIDEOS = {
    "an MP4 or QuickTime video": "MP4",
    "a Matroska or WebM video": "WebM",
    "an AVI video": "AVI",
}
"""The video formats that can be decoded, by their names in errors about pictures."""


def sniff_video(data: bytes) -> str:
    """Return one of the values of :data:`VIDEOS`. Raises ``UnsupportedMedia``."""
    name = sniff(data)
    if name in VIDEOS:
        return VIDEOS[name]
    this = f"this is {name}" if name else "not a known video format"
    if name in SUPPORTED:
        this = f"this is a {name} picture"
    raise UnsupportedMedia(f"video: {this}; expected MP4, WebM or AVI", "video")
