"""The environment of Ray in a benchmark. Import this before Ray, which reads it then."""

import os

from deployments.ray_environment import ENVIRONMENT

# Workers find `testing` by the path.
os.environ.update({"PYTHONPATH": os.getcwd(), **ENVIRONMENT, **os.environ})
