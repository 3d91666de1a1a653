"""What an update costs under load: ``python -m benchmarks.updates``."""

from benchmarks import ray_settings  # noqa: F401 (before Ray)
