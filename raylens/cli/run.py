"""``raylens run``: ``serve run`` with the settings that were measured, watched until it is ready
and stopped whole."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import httpx
import yaml
from pydantic import BaseModel, ValidationError

from raylens.cli.processes import await_end
from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.environment import with_environment

# Read when Ray starts. gRPC between replicas and user code on the replica's own event loop took a
# no-op graph from 79 to 127 requests/s on 2 cores. Token authentication guards Ray's own ports,
# which listen on every interface. Serve's controller looks around ten times a second otherwise; on
# 2 cores that alone slowed a model by a seventh.
ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),  # an answer may hold a picture
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
MARK = "RAYLENS_RUN"
"""A variable that everything started here inherits, by which it is found again."""
STOP_PATIENCE_S = 30.0
LEFTOVER_PATIENCE_S = 15.0
_DASHBOARD = re.compile(r"dashboard at .*?(\d+\.\d+\.\d+\.\d+:\d+)")


class ConfigError(Exception):
    """A config file that can't work; the message names the key."""


@dataclass(frozen=True)
class Endpoint:
    """Where the HTTP server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.host in ("", "0.0.0.0") else self.host
        return f"http://{host}:{self.port}"


def read_config(path: Path, also: Callable[[AppConfig], None] = lambda app: None) -> Endpoint:
    """Checks a Serve config file before Ray starts, and ``also`` its applications. Raises
    ``ConfigError``, which names the key at fault."""
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error
    _check_serve(config)
    for application in config["applications"]:
        try:
            settings, notes = with_environment(application.get("args", {}), os.environ)
            app = AppConfig.model_validate(settings)
        except ValidationError as error:
            raise ConfigError(_explain(error, "args")) from None
        wanted = os.environ.get("VLM_MODEL")
        if wanted and not Catalog(app).knows(wanted):
            notes.append(
                f"VLM_MODEL: {wanted!r} is not served here; jobs go to {Catalog(app).resolve(None, 'jobs')}"
            )
        also(app)
        for note in notes:
            print(f"raylens: {note}", file=sys.stderr)
        known = {"Ingress", "Preprocessor", *(model.name for model in app.models)}
        for deployment in application.get("deployments") or ():
            if deployment["name"] not in known:
                raise ConfigError(
                    f"deployments: {deployment['name']!r} is none of {', '.join(sorted(known))}"
                )
    options = config.get("http_options") or {}
    return Endpoint(str(options.get("host", "127.0.0.1")), int(options.get("port", 8000)))


def check_jobs(app: AppConfig) -> None:
    """Raises ``ConfigError`` where the queue can't keep anything: Serve would try for minutes to
    start it."""
    from raylens.jobs.factory import check
    from raylens.jobs.store import StoreUnusable

    try:
        if app.jobs.enabled:
            check(app.jobs)
    except StoreUnusable as error:
        raise ConfigError(f"args.{error}") from None


def _check_serve(config: Any) -> None:
    """Serve's own schema for the rest of the file, and its keys, which Serve lets pass where they
    are misspelled."""
    from ray.serve.schema import ServeDeploySchema

    if not isinstance(config, dict):
        raise ConfigError("a mapping with `applications` is needed")
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    unknown = list(_unknown_keys(config, ServeDeploySchema))
    if unknown:
        raise ConfigError("; ".join(f"{key}: no such key" for key in unknown))


def _unknown_keys(config: Any, schema: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys that pydantic model ``schema`` doesn't have, at every level that it
    describes."""
    fields = schema.model_fields
    for key, value in config.items():
        if key not in fields:
            yield f"{prefix}{key}"
            continue
        nested = _nested_model(fields[key].annotation)
        if nested is None:
            continue
        items = enumerate(value) if isinstance(value, list) else [("", value)]
        for index, item in items:
            if isinstance(item, dict):
                yield from _unknown_keys(item, nested, f"{prefix}{key}.{index}.".replace("..", "."))


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as ``X``, ``list[X]`` or ``X | None``; None for
    several or for none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [model for model in map(_nested_model, get_args(annotation)) if model is not None]
    return found[0] if len(found) == 1 else None


def _explain(error: ValidationError, *prefix: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join((*prefix, *map(str, item["loc"])))
        lines.append(f"{key}: {item['msg']}")
    return "; ".join(lines)


class Server:
    """A ``serve run`` process, in a session of its own, and its log on our standard error."""

    def __init__(self, config: Path, endpoint: Endpoint, ready_timeout: float) -> None:
        self._config = config
        self._endpoint = endpoint
        self._ready_timeout = ready_timeout
        self._dashboard: str | None = None
        self._stop = threading.Event()
        self._mark = uuid.uuid4().hex

    def serve(self) -> int:
        """Runs until a signal or until the process ends; the exit status. What went wrong is the
        last line said."""
        if self._port_is_taken():
            problem: str | None = f"port {self._endpoint.port} of {self._endpoint.host} is in use"
        else:
            problem = self._run()
        if problem is not None:
            print(f"raylens: {problem}", file=sys.stderr, flush=True)
        return 0 if problem is None else 1

    def _run(self) -> str | None:
        """Starts, watches and stops the process; None after a signal, else what went wrong."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._process = self._start()
        try:
            problem = self._wait_until_ready()
            if problem is not None or self._stop.is_set():
                return problem
            self._announce()
            while not self._stop.wait(0.5):
                if self._process.poll() is not None:
                    return f"serve ended by itself with status {self._process.returncode}"
            return None
        finally:
            self._shut_down()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _port_is_taken(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._endpoint.host, self._endpoint.port))
            except OSError:
                return True
        return False

    def _start(self) -> subprocess.Popen[str]:
        serve = Path(sys.executable).with_name("serve")
        process = subprocess.Popen(
            [str(serve), "run", "--address", "local", str(self._config)],
            env={**ENVIRONMENT, **os.environ, MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._relay, args=(process,), daemon=True).start()
        return process

    def _relay(self, process: subprocess.Popen[str]) -> None:
        """Passes the log on, and picks the dashboard's address out of it."""
        assert process.stdout is not None
        for line in process.stdout:
            found = _DASHBOARD.search(line)
            if found:
                self._dashboard = f"http://{found[1]}"
            sys.stderr.write(line)
            sys.stderr.flush()

    def _wait_until_ready(self) -> str | None:
        """None once every model answers, or on a signal; else what went wrong."""
        until = time.monotonic() + self._ready_timeout
        while not self._stop.wait(0.5):
            if self._process.poll() is not None:
                return f"serve ended with status {self._process.returncode} before it was ready"
            failure = self._failure()
            if failure is not None:
                return failure
            if self._is_ready():
                return None
            if time.monotonic() > until:
                return f"not ready after {self._ready_timeout:g} s"
        return None

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self._endpoint.url}/ready", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _failure(self) -> str | None:
        """What Serve says of an application that can't be deployed."""
        if self._dashboard is None:
            return None
        try:
            details = httpx.get(
                f"{self._dashboard}/api/serve/applications/", headers=_token_header(), timeout=5
            ).json()
        except (httpx.HTTPError, ValueError):
            return None
        for name, application in details.get("applications", {}).items():
            if application["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                messages = [
                    deployment.get("message", "")
                    for deployment in application["deployments"].values()
                ]
                reasons = [text for text in (application.get("message", ""), *messages) if text]
                return f"application {name} can't start: " + "; ".join(reasons)
        return None

    def _announce(self) -> None:
        url = self._endpoint.url
        print(
            f"\nraylens is ready at {url}  (API: {url}/docs, Ray dashboard: {self._dashboard}). Try:\n"
            f"  curl -s {url}/v1/caption -F file=@docs/scene.png -F length=long\n",
            flush=True,
        )

    def _shut_down(self) -> None:
        """Ctrl-C for ``serve run``, which ends Serve and Ray; then all that is left of what they
        started."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_PATIENCE_S)
        await_end(MARK, self._mark, LEFTOVER_PATIENCE_S)
        self._process.wait()


def _token_header() -> dict[str, str]:
    """Ray's token, where this machine has one; Ray makes it at its first start."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if token is None and path.is_file():
        token = path.read_text().strip()
    return {"Authorization": f"Bearer {token}"} if token else {}
