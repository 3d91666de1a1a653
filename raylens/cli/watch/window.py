"""A window that shows the annotated frames, if this machine has one."""

from __future__ import annotations

import os
import re
import sys

import cv2

from raylens.realtime.overlay import Pixels

TITLE = "raylens watch"


def why_no_window() -> str | None:
    """Return why nothing can be shown; None if it can."""
    toolkit = re.search(r"(?m)^\s*GUI:\s*(\S+)", cv2.getBuildInformation())
    if toolkit is None or toolkit[1] == "NONE":
        return "this OpenCV has no windows (opencv-python has them, opencv-python-headless not)"
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_display:
        return "there is no display"
    return None


def show(pixels: Pixels) -> None:
    cv2.imshow(TITLE, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    cv2.waitKey(1)


def close() -> None:
    cv2.destroyAllWindows()
