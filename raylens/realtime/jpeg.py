"""Frames as JPEG files, in which they travel to models."""

from __future__ import annotations

import cv2

from raylens.realtime.overlay import Pixels

QUALITY = 92


def encode_jpeg(pixels: Pixels) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()
