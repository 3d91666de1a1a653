"""Watches in the deployment of live video, as the job queue sees them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.realtime_client import replica_of
from raylens.core.errors import RaylensError
from raylens.jobs.job import Job
from raylens.jobs.types.watch import Watcher, WatchInput
from raylens.realtime.ports import SessionClient


class WatchLost(RaylensError):
    """The replica has died. That may be the fault of what it watched: not for ever is another
    one tried."""

    code = "replica_lost"
    http_status = 503


class WatchClient(Watcher):
    """Has a replica watch."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle.options(stream=True)

    async def watch(
        self, job: Job, watch_input: WatchInput
    ) -> AsyncGenerator[dict[str, Any], None]:
        messages = self._start(watch_input, SessionClient(job.client, job.owner or None))
        try:
            async for message in messages:
                yield message
        except RayTaskError as error:
            if isinstance(error.cause, RaylensError):
                raise error.cause from error
            raise
        except (RayError, RayServeException) as error:
            raise WatchLost(f"the replica is lost ({type(error).__name__})") from error
        finally:
            with suppress(RayError, RayServeException):  # that of a call that has failed
                messages.cancel()

    def _start(self, watch_input: WatchInput, client: SessionClient) -> Any:
        session_id = watch_input.session_id
        if session_id is not None:
            handle = self._handle.options(session_id=replica_of(session_id))
            return handle.follow.remote(session_id, client)
        return self._handle.watch.remote(
            watch_input.source, watch_input.pipeline, watch_input.fps, client
        )
