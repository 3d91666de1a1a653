"""The pipelines that clients have loaded, which all replicas of the ingress share."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayError

from deployments.shared_state import call_shared_state
from raylens.api.pipelines import LoadedPipeline, PipelineDefaults
from raylens.core.errors import Overloaded

TIMEOUT_S = 5.0
RETRY_AFTER_S = 2.0


class PipelineDefaultsClient(PipelineDefaults):
    """Those in the shared state, as the HTTP application sees them."""

    async def get(self, client: str) -> LoadedPipeline | None:
        loaded: LoadedPipeline | None = await self._call("get_pipeline", client)
        return loaded

    async def put(self, client: str, loaded: LoadedPipeline) -> None:
        await self._call("put_pipeline", client, loaded)

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await call_shared_state(method, *arguments, timeout_s=TIMEOUT_S)
        except (TimeoutError, ValueError, RayError) as error:
            message = "the pipelines that clients have loaded can't be reached"
            raise Overloaded(message, None, retry_after=RETRY_AFTER_S) from error
