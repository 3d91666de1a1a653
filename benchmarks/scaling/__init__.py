"""Benchmarks of scaling with models that answer after a fixed time: ``python -m
benchmarks.scaling``."""

import os

from deployments.ray_environment import ENVIRONMENT

# Ray reads these variables when it is imported. Its workers find `testing` by the path.
os.environ.update({"PYTHONPATH": os.getcwd(), **ENVIRONMENT, **os.environ})
