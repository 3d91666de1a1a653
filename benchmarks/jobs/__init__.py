"""How fast the job queue is, with a model that takes no time: ``python -m benchmarks.jobs``."""

import os

from raylens.cli.run import ENVIRONMENT

# Ray reads them when it is imported.
os.environ.update({**ENVIRONMENT, **os.environ})
