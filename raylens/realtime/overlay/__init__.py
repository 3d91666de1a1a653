"""Results, drawn on frames: boxes, points and a bar of text."""

from raylens.realtime.overlay.blending import Pixels
from raylens.realtime.overlay.colors import GREEN, RED
from raylens.realtime.overlay.drawing import Overlay
from raylens.realtime.overlay.typesetting import Typesetter, shared_typesetter

__all__ = ["GREEN", "RED", "Overlay", "Pixels", "Typesetter", "shared_typesetter"]
