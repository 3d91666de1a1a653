"""Benchmarks of the job queue with a model that takes no time: ``python -m benchmarks.jobs``."""

import os

from deployments.ray_environment import ENVIRONMENT

# Ray reads these variables when it is imported.
os.environ.update({**ENVIRONMENT, **os.environ})
