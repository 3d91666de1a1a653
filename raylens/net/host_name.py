"""Host names in ASCII, as DNS, TLS and HTTP write them."""

from __future__ import annotations

import re

import idna

MAX_NAME_CHARS = 253
_ASCII_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def to_ascii(host: str) -> str:
    """Return a host name in lowercase ASCII, by IDNA 2008.

    As in browsers, characters are first mapped by UTS 46: capitals to small letters, wide letters
    to plain ones. ``ß`` is kept: ``faß.de`` is another domain than ``fass.de``. A label that is
    ASCII already may contain underscores, as the names of containers do. A trailing dot and the
    notations of an IPv4 address are kept.

    Raises ``ValueError`` if the host is not a host name.
    """
    mapped = idna.uts46_remap(host, std3_rules=False)
    labels = mapped.removesuffix(".").split(".")
    name = ".".join(_label_to_ascii(label) for label in labels)
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"{len(name)} characters; the limit is {MAX_NAME_CHARS}")
    return f"{name}." if mapped.endswith(".") else name


def _label_to_ascii(label: str) -> str:
    """Return a mapped label in ASCII. Raises ``ValueError``."""
    if not label.isascii() or label.startswith("xn--"):
        return idna.alabel(label).decode("ascii")
    if not _ASCII_LABEL.fullmatch(label):
        raise ValueError(f"{label!r}: not a label of a host name")
    return label
