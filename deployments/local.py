"""``python -m deployments.local CONFIG STATUS_FD HOST PORT DRAIN_TIMEOUT_S``: Ray, Serve and the
applications of a config file, in this process and its children, until a signal. HOST and PORT are
those of HTTP. SIGINT ends them at once; SIGTERM and SIGUSR1 drain them before, for DRAIN_TIMEOUT_S
seconds at the most.

``raylens run`` supervises this process. Its progress goes to the file descriptor as JSON lines:
``{"dashboard": url}`` once Ray runs, ``{"failure": reason}`` if an application can't be deployed,
and ``{"drain": text}`` about what a drain waits for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

import ray
import yaml
from ray import serve
from ray.serve._private.api import serve_start
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.config import gRPCOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, ServeDeploySchema

from deployments.server_drain import ServerDrain
from raylens.core.endpoint import Endpoint

STATUS_PERIOD_S = 0.5
FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


def main(config: Path, status: IO[str], endpoint: Endpoint, drain_timeout_s: float) -> None:
    settings = yaml.safe_load(config.read_text())
    address = {"host": endpoint.host, "port": endpoint.port}
    settings["http_options"] = {**(settings.get("http_options") or {}), **address}
    schema = ServeDeploySchema.model_validate(settings)
    must_drain = threading.Event()
    signal.signal(signal.SIGUSR1, lambda number, frame: must_drain.set())
    try:
        context = ray.init(address="local", namespace=SERVE_NAMESPACE)
        # Ray has a handler of its own for this signal, which ends the cluster.
        signal.signal(signal.SIGTERM, lambda number, frame: must_drain.set())
        session = Path(context.address_info["session_dir"])
        _keep_private(session)
        _report(status, dashboard=f"http://{context.dashboard_url}")
        _deploy(schema)
        failure = _wait_until_deployed(must_drain)
        if failure is not None:
            _report(status, failure=failure)
        while not must_drain.wait(STATUS_PERIOD_S):
            _keep_private(session)
        ServerDrain(endpoint, lambda text: _report(status, drain=text)).run(drain_timeout_s)
    except KeyboardInterrupt:
        pass
    serve.shutdown()


def _keep_private(session: Path) -> None:
    """Close what Ray opens to all users of the machine: its logs and sockets, and an older token.

    Ray opens the session's folder again whenever a driver connects.
    """
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    for path, mode in ((session, 0o700), (token, 0o600)):
        with suppress(OSError):  # there is none, or it is somebody else's
            path.chmod(mode)


def _deploy(schema: ServeDeploySchema) -> None:
    """Do what ``serve run`` does."""
    client = serve_start(
        http_options=schema.http_options.model_dump(),
        proxy_location=schema.proxy_location,
        grpc_options=gRPCOptions(**schema.grpc_options.model_dump()),
        controller_options=schema.controller_options,
    )
    client.deploy_apps(schema, _blocking=False)


def _wait_until_deployed(must_drain: threading.Event) -> str | None:
    """Wait until every application runs, or one has failed. Returns the reason of the failure."""
    while not must_drain.wait(STATUS_PERIOD_S):
        applications = serve.status().applications
        for name, application in applications.items():
            if application.status in FAILED:
                return f"application {name} failed to start: {_messages(application)}"
        if all(a.status is ApplicationStatus.RUNNING for a in applications.values()):
            return None
    return None


def _messages(application: ApplicationStatusOverview) -> str:
    deployments = application.deployments.values()
    messages = [application.message, *(deployment.message for deployment in deployments)]
    return "; ".join(message for message in messages if message)


def _report(status: IO[str], **message: str) -> None:
    with suppress(BrokenPipeError):  # `raylens run` was killed
        print(json.dumps(message), file=status, flush=True)


if __name__ == "__main__":
    with suppress(BrokenPipeError), os.fdopen(int(sys.argv[2]), "w") as status_file:
        main(
            Path(sys.argv[1]),
            status_file,
            Endpoint(sys.argv[3], int(sys.argv[4])),
            float(sys.argv[5]),
        )
