"""What a request costs in each process: ``python -m benchmarks.cost``."""

from benchmarks import ray_settings  # noqa: F401 (before Ray)
