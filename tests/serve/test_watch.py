"""``raylens watch`` against the server: a drawn video in which a circle comes and goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from models.pocket.video_files import encode_video
from raylens.realtime.overlay import GREEN, Pixels
from testing.moving_circle import RED, draw_circle, find, iou

FPS = 30
FRAMES = 300
COMES, GOES = 90, 210
"""The circle is on these frames, without the last one."""
INTERVAL_S = 0.5
"""Between two questions: two a second."""
STEP = 3
"""Pixels that the circle moves in a frame."""


def draw(number: int) -> Pixels:
    if COMES <= number < GOES:
        return draw_circle(40 + STEP * (number - COMES))
    return np.full((480, 640, 3), 190, np.uint8)


def watch(server: str, folder: Path, number: int) -> tuple[list[Any], list[Any], list[Pixels]]:
    """Return the events, the results and the annotated frames of a run."""
    names = [folder / f"{number}.{name}" for name in ("events.jsonl", "results.jsonl", "mp4")]
    events, results, out = names
    command = [str(Path(sys.executable).with_name("raylens")), "watch", str(folder / "video.mp4")]
    command += ["--detect", "red circle", "--server", server, "--out", str(out)]
    command += ["--events", str(events), "--results", str(results)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert outcome.returncode == 0, outcome.stderr
    print(outcome.stderr)
    with av.open(str(out)) as container:
        decoded = container.decode(video=0)
        frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in decoded]
    read = [[json.loads(line) for line in path.read_text().splitlines()] for path in names[:2]]
    return read[0], read[1], frames


def test_a_circle_comes_and_goes(server: str, tmp_path: Path) -> None:
    video = tmp_path / "video.mp4"
    video.write_bytes(encode_video([draw(number) for number in range(FRAMES)], FPS))
    events, results, frames = watch(server, tmp_path, 1)

    assert [event["type"] for event in events] == ["started", "ended"]
    started, ended = events
    assert started["time_s"] == pytest.approx(COMES / FPS, abs=INTERVAL_S)
    assert ended["ended_at"] == pytest.approx(GOES / FPS, abs=INTERVAL_S)
    assert len(results) == FRAMES / FPS / INTERVAL_S

    assert len(frames) == FRAMES
    overlaps = []
    for number, pixels in enumerate(frames):
        shape = find(draw(number)[175:], RED)
        box = find(pixels[175:], GREEN)  # the label is above the box, and as green
        if shape is not None and box is not None:
            overlaps.append(iou(box, shape))
    assert len(overlaps) >= GOES - COMES - INTERVAL_S * FPS
    assert np.mean(overlaps) >= 0.8
    assert min(overlaps) >= 0.7
    print(f"overlap {np.mean(overlaps):.3f}, worst {min(overlaps):.3f}, {len(overlaps)} frames")

    again_events, again_results, again_frames = watch(server, tmp_path, 2)
    assert (again_events, again_results) == (events, results)
    assert all(map(np.array_equal, frames, again_frames))
