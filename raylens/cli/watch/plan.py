"""The plan of a watch, as its options say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylens.cli.errors import UsageError
from raylens.core.errors import InvalidRequest
from raylens.realtime.live_session import MAX_FRAMES
from raylens.realtime.sessions import change_settings
from raylens.realtime.settings import MoondreamConfig, MoondreamFeature
from raylens.realtime.sources.base import SourceAddress, SourceKind

STDOUT = Path("-")
FILE_FPS = 2.0
"""Questions a second of a video, unless the options say otherwise."""
_OPTIONS = {
    "detect_object": "--detect or --point",
    "question": "--ask",
    "caption_length": "--length",
    "model": "--model",
    "max_objects": "--max-objects",
    "inference_interval": "--every",
    "frames": "--frames",
    "event_enter": "--enter",
    "event_leave": "--leave",
    "event_min_count": "--min-count",
}
"""The options of the pipeline's settings."""


@dataclass(frozen=True)
class Outputs:
    """Where a watch writes what it finds. ``-`` means standard output."""

    video: Path | None = None
    events: Path | None = None
    results: Path | None = None
    webhook: str | None = None
    is_shown: bool = False

    @property
    def needs_drawing(self) -> bool:
        return self.video is not None or self.is_shown


@dataclass(frozen=True)
class Plan:
    """A watch: its source, its question, how often that is asked, and the outputs."""

    address: SourceAddress
    settings: MoondreamConfig
    outputs: Outputs
    fps: float | None = None
    """Questions a second. Without it, ``settings.inference_interval`` counts frames."""
    is_followed: bool = False
    """Whether a folder is live."""
    seconds: float | None = None
    in_flight: int = 4
    """Questions about a file at a time."""

    @property
    def is_live(self) -> bool:
        return is_live(self.address, self.is_followed)


def is_live(address: SourceAddress, is_followed: bool) -> bool:
    """Return whether frames come by themselves."""
    match address.kind:
        case SourceKind.FILE:
            return False
        case SourceKind.FOLDER:
            return is_followed
    return True


def choose_fps(
    address: SourceAddress, is_followed: bool, frames: int, every: int | None, fps: float | None
) -> float | None:
    """Return the questions a second; None if every Nth frame is due.

    ``frames`` is the number of frames that a question is about. Raises ``UsageError``.
    """
    if every is not None and fps is not None:
        raise UsageError("--every and --fps: give one of them")
    if fps is not None:
        _check_positive("--fps", fps)
        return fps
    needs_pace = address.kind is SourceKind.FILE or (frames > 1 and is_live(address, is_followed))
    return FILE_FPS if every is None and needs_pace else None


def _check_positive(option: str, number: float) -> None:
    if not 0 < number < float("inf"):
        raise UsageError(f"{option}: expected more than 0")


def make_settings(
    detect: str | None, point: str | None, ask: str | None, caption: bool, **others: Any
) -> MoondreamConfig:
    """Return the settings of the pipeline. Those in ``others`` that are None have their defaults.

    Raises ``UsageError``, which names the option.
    """
    wanted = {
        MoondreamFeature.DETECT: detect,
        MoondreamFeature.POINT: point,
        MoondreamFeature.QUERY: ask,
        MoondreamFeature.CAPTION: "caption" if caption else None,
    }
    given = {feature: subject for feature, subject in wanted.items() if subject is not None}
    if len(given) > 1:
        raise UsageError("--detect, --point, --ask and --caption: give one of them")
    feature, subject = next(iter(given.items()), (MoondreamFeature.CAPTION, "caption"))
    if not subject.strip():
        raise UsageError(f"--{'ask' if feature is MoondreamFeature.QUERY else feature}: is empty")
    if others.get("frames", 1) > 1 and feature in (MoondreamFeature.DETECT, MoondreamFeature.POINT):
        raise UsageError("--frames: is for --caption and --ask")
    values = {name: value for name, value in others.items() if value is not None}
    values |= {"feature": feature.value, "temperature": 0.0}
    if feature is MoondreamFeature.QUERY:
        values["question"] = subject
    elif feature is not MoondreamFeature.CAPTION:
        values["detect_object"] = subject
    try:
        return change_settings(MoondreamConfig(), values, MAX_FRAMES)
    except InvalidRequest as error:
        name = (error.field or "").rpartition(".")[2]
        reason = error.message.partition(": ")[2]
        raise UsageError(f"{_OPTIONS.get(name, name)}: {reason}") from None


def check_plan(plan: Plan) -> None:
    """Raise ``UsageError`` if parts of a plan contradict one another."""
    if plan.is_followed and plan.address.kind is not SourceKind.FOLDER:
        raise UsageError("--follow: is for folders")
    if plan.seconds is not None:
        _check_positive("--seconds", plan.seconds)
        if not plan.is_live:
            raise UsageError("--seconds: is for live sources")
    _check_outputs(plan.outputs, plan.settings, plan.address)


def _check_outputs(outputs: Outputs, settings: MoondreamConfig, address: SourceAddress) -> None:
    is_caption = settings.feature is MoondreamFeature.CAPTION
    for option, value in (("--events", outputs.events), ("--webhook", outputs.webhook)):
        if value is not None and is_caption:
            raise UsageError(f"{option}: captions have no events; use --detect, --point or --ask")
    if outputs.events == outputs.results == STDOUT:
        raise UsageError("--events and --results: only one of them can be -")
    if outputs.video is not None and outputs.video.suffix.lower() != ".mp4":
        raise UsageError(f"--out: {outputs.video}: expected a name that ends in .mp4")
    named = {"--out": outputs.video, "--events": outputs.events, "--results": outputs.results}
    files = {option: path for option, path in named.items() if path and path != STDOUT}
    names = [path.resolve() for path in files.values()]
    if address.kind is SourceKind.FILE:
        names.append(Path(address.location).resolve())
    if len(set(names)) < len(names):
        raise UsageError("two of the source, --out, --events and --results are the same file")
    for option, path in files.items():
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{option}: {path}: its folder doesn't exist")
        if path.is_dir():
            raise UsageError(f"{option}: {path}: is a folder")
