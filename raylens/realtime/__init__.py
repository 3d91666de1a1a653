"""Pipelines over live video: settings, results that are kept between frames, and overlays."""
