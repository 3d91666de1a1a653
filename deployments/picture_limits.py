"""The limits on picture and video files, as the preprocessing package takes them."""

from __future__ import annotations

from preprocessing.header import PictureLimits
from preprocessing.video import VideoLimits
from raylens.core.config import RequestLimits


def picture_limits(limits: RequestLimits) -> PictureLimits:
    return PictureLimits(
        max_bytes=limits.max_image_bytes,
        max_pixels=limits.max_image_pixels,
        min_side=limits.min_image_side,
        max_side=limits.max_image_side,
        max_filter_s=limits.max_filter_s,
    )


def video_limits(limits: RequestLimits) -> VideoLimits:
    return VideoLimits(
        max_bytes=limits.max_video_bytes,
        max_seconds=limits.max_video_seconds,
        max_pixels=limits.max_video_pixels,
        max_frames=limits.max_video_frames,
        max_sampled_pixels=limits.max_image_pixels,
        max_filter_s=limits.max_filter_s,
    )
