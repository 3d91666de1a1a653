"""Small ICC profiles, built from scratch (ICC.1:2001-04, version 2), and their exact values in
sRGB."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Colorants, adapted to D50, as columns. Published by the authors of these color spaces.
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
D50 = np.array([0.9642, 1.0, 0.8249])
GAMMA = 563 / 256

INKS = {
    "white": (100, 0, 0),
    "cyan": (55, -30, -30),
    "magenta": (48, 50, 0),
    "yellow": (89, -5, 60),
}
"""CIE Lab of the inks of ``cmyk_profile``. Black, and any two inks together, are (0, 0, 0)."""


def matrix_profile(colorants: Array, name: str) -> bytes:
    """Return an RGB profile with a plain gamma curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    tags = {b"desc": _text(name), b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": _xyz(D50)}
    for channel, column in zip(b"rgb", colorants.T, strict=True):
        tags[bytes([channel]) + b"XYZ"] = _xyz(column)
        tags[bytes([channel]) + b"TRC"] = curve
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def gray_profile(gamma: float) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": _text("gray"),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(D50),
        b"kTRC": curve,
    }
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """Return a printer's profile with a table of 2 × 2 × 2 × 2 entries."""
    ramp = bytes(range(256))
    table = b"".join(_lab8(_print(inks)) for inks in itertools.product((0, 1), repeat=4))
    identity = struct.pack(">9i", *np.ravel(65536 * np.eye(3, dtype=int)))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * ramp + table + 3 * ramp
    tags = {
        b"desc": _text("press"),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(D50),
        b"A2B0": lut,
    }
    return _profile(b"prtr", b"CMYK", b"Lab ", tags)


def rgb_to_srgb(pixels: Array, colorants: Array) -> Array:
    """Convert levels of an RGB space with ``GAMMA`` to levels of sRGB."""
    linear = (pixels / 255.0) ** GAMMA
    return _encode(linear @ colorants.T @ np.linalg.inv(SRGB).T)


def lab_to_srgb(lab: tuple[float, float, float]) -> Array:
    middle = (lab[0] + 16) / 116
    f = np.array([middle + lab[1] / 500, middle, middle - lab[2] / 200])
    xyz = D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return _encode(xyz @ np.linalg.inv(SRGB).T)


def _encode(linear: Array) -> Array:
    """Apply the transfer function of sRGB (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded))


def _print(inks: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the Lab color of inks (cyan, magenta, yellow, black) on white paper."""
    if sum(inks) == 0:
        return INKS["white"]
    if sum(inks) > 1 or inks[3]:
        return (0, 0, 0)
    return INKS[("cyan", "magenta", "yellow")[inks.index(1)]]


def _lab8(lab: tuple[int, int, int]) -> bytes:
    return bytes([round(lab[0] * 2.55), lab[1] + 128, lab[2] + 128])


def _text(name: str) -> bytes:
    ascii_name = name.encode() + b"\0"
    return b"desc" + bytes(4) + struct.pack(">I", len(ascii_name)) + ascii_name + bytes(78)


def _xyz(values: Array) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


def _profile(
    device_class: bytes, space: bytes, connection_space: bytes, tags: dict[bytes, bytes]
) -> bytes:
    directory = struct.pack(">I", len(tags))
    body = b""
    start = 128 + 4 + 12 * len(tags)
    for signature, data in tags.items():
        directory += signature + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    header = struct.pack(
        ">I4sI4s4s4s", size, b"none", 0x02400000, device_class, space, connection_space
    )
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(D50)[8:]
    return header.ljust(128, b"\0") + directory + body
