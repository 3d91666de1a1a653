"""Opens the source of an address."""

from __future__ import annotations

from raylens.realtime.sources.base import (
    ReportProblem,
    Source,
    SourceAddress,
    SourceKind,
    SourceOptions,
)
from raylens.realtime.sources.camera import CameraSource
from raylens.realtime.sources.file import FileSource
from raylens.realtime.sources.folder import FolderSource, FollowedFolder
from raylens.realtime.sources.http import HttpSource
from raylens.realtime.sources.rtsp import RtspSource
from raylens.realtime.sources.stdin import StdinSource

_DEFAULTS = SourceOptions()


def open_source(
    address: SourceAddress,
    options: SourceOptions = _DEFAULTS,
    report: ReportProblem = lambda problem: None,
) -> Source:
    """Return the source of an address. It never blocks: the first ``read`` connects.

    ``report`` gets a sentence about each picture that is skipped because it is damaged, and about a
    damaged video at its end.
    """
    match address.kind:
        case SourceKind.FILE:
            return FileSource(address, options, report)
        case SourceKind.RTSP:
            return RtspSource(address, options)
        case SourceKind.HTTP:
            return HttpSource(address, options, report)
        case SourceKind.CAMERA:
            return CameraSource(address, options)
        case SourceKind.STDIN:
            return StdinSource(address, options, report)
        case SourceKind.FOLDER if options.is_followed:
            return FollowedFolder(address, options, report)
        case SourceKind.FOLDER:
            return FolderSource(address, options, report)
