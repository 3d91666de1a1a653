"""Environment variables of the cluster. Import this before Ray, which reads them then."""

import base64
import os
import secrets

from deployments.ray_environment import ENVIRONMENT, ONE_MACHINE

# Workers find `testing` by the path. A token of its own keeps the cluster apart from any other.
os.environ.update(
    {
        "PYTHONPATH": os.getcwd(),
        **ENVIRONMENT,
        **ONE_MACHINE,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAYLENS_WEBHOOK_SECRETS": f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}",
        **os.environ,
    }
)
