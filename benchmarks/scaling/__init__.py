"""Benchmarks of scaling with models that answer after a fixed time: ``python -m
benchmarks.scaling``."""

from benchmarks import ray_settings  # noqa: F401 (before Ray)
