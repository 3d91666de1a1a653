"""The pipelines of live video: their settings, and those with which sessions begin.

Format: Scope's API (``daydreamlive/scope``), and the shorthand of its plugin for Moondream.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.convertors import Convertor, register_url_convertor

from raylens.api.answers import answers
from raylens.api.answers import services as shapes
from raylens.api.clients import presented_keys
from raylens.api.context import Context
from raylens.core.errors import InvalidRequest, PermissionDenied, RaylensError
from raylens.core.keys import current_key
from raylens.core.types import PictureFile
from raylens.core.wire import Body
from raylens.realtime.pipeline import MoondreamPipeline, task_of
from raylens.realtime.plugins import Pipeline, load_registry
from raylens.realtime.sessions import find_pipeline, merge_params
from raylens.realtime.settings import MoondreamConfig

PREFIX = "/api/v1"
MAX_CLIENTS = 10_000
"""Clients whose pipelines are remembered; the oldest are forgotten first."""
MAX_PARAMS_BYTES = 16 * 2**10
_GRAY = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAEUlEQVR42mNsYEAFTAwjWgAAmZAAoFDIQrAAAAAASUVO"
    "RK5CYII="
)
"""A small gray picture, for the request that warms a model up."""


class LoadRequest(Body):
    """Body of ``POST /api/v1/pipeline/load``, in Scope's form or in the plugin's shorthand."""

    pipeline_ids: Annotated[list[str], Field(max_length=16)] | None = None
    pipeline_id: str | None = None
    load_params: dict[str, Any] | None = None

    @property
    def chosen_id(self) -> str:
        """The one pipeline to load. Raises ``InvalidRequest``."""
        chosen: list[str] = list(self.pipeline_ids or ())
        if self.pipeline_id:
            chosen.append(self.pipeline_id)
        if len(chosen) != 1:
            field = "pipeline_id" if self.pipeline_ids is None else "pipeline_ids"
            raise InvalidRequest(f"{field}: {len(chosen)} pipelines; expected one", field)
        return chosen[0]

    @property
    def field(self) -> str:
        return "pipeline_id" if self.pipeline_ids is None else "pipeline_ids.0"


@dataclass(frozen=True)
class LoadedPipeline:
    """The pipeline that a client has loaded, and the settings with which its sessions begin."""

    pipeline_id: str
    load_params: dict[str, Any]
    status: str = "loaded"
    error: str | None = None


class PipelineDefaults(Protocol):
    """The pipelines that clients have loaded. All replicas of the ingress share them.

    A client is its API key's digest, or an empty text. The methods raise ``Overloaded`` if the
    defaults are away.
    """

    async def get(self, client: str) -> LoadedPipeline | None: ...

    async def put(self, client: str, loaded: LoadedPipeline) -> None: ...


class LocalDefaults(PipelineDefaults):
    """The defaults in this process."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, LoadedPipeline] = OrderedDict()

    async def get(self, client: str) -> LoadedPipeline | None:
        return self._loaded.get(client)

    async def put(self, client: str, loaded: LoadedPipeline) -> None:
        self._loaded[client] = loaded
        self._loaded.move_to_end(client)
        while len(self._loaded) > MAX_CLIENTS:
            self._loaded.popitem(last=False)


_FIXED_PLUGINS = (
    "plugins can't be installed or removed while the server runs: they come with its environment or"
    " its image"
)


class _AnyText(Convertor[str]):
    """A part of a path with slashes and line breaks, which ``path`` doesn't accept."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_text", _AnyText())


def router(context: Context, defaults: PipelineDefaults) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix=PREFIX, tags=["Pipelines"])

    @routes.get(
        "/pipelines/schemas",
        summary="Show the pipelines and their settings",
        **answers(shapes.Pipelines),
    )
    async def schemas() -> dict[str, Any]:
        pipelines = (await asyncio.to_thread(load_registry)).pipelines
        return {"pipelines": {name: _schema(pipeline) for name, pipeline in pipelines.items()}}

    @routes.post(
        "/pipeline/load",
        summary="Set the pipeline and the settings of new sessions",
        **answers(shapes.Message),
    )
    async def load(body: LoadRequest, http: Request) -> dict[str, str]:
        registry = await asyncio.to_thread(load_registry)
        pipeline = find_pipeline(registry, body.chosen_id, body.field)
        params = merge_params(pipeline, body.load_params or {})
        _check_size(params)
        client = identify(http)
        loading = LoadedPipeline(pipeline.id, params, "loading")
        # After a failure, sessions go on with the last settings that worked.
        last = await defaults.get(client) or loading
        outcome = replace(last, status="error", error="interrupted")
        await defaults.put(client, loading)
        try:
            await _warm_up(context, http, pipeline, params)
            outcome = LoadedPipeline(pipeline.id, params)
        except RaylensError as error:
            outcome = replace(outcome, error=error.message)
            raise
        finally:
            await defaults.put(client, outcome)
        is_shorthand = body.pipeline_ids is None
        return {"message": "loaded" if is_shorthand else "Pipeline loading initiated successfully"}

    @routes.get(
        "/pipeline/status",
        summary="Show the pipeline of new sessions",
        **answers(shapes.LoadedPipeline),
    )
    async def status(http: Request) -> dict[str, Any]:
        loaded = await defaults.get(identify(http))
        if loaded is None:
            return {"status": "not_loaded", "pipeline_id": None, "load_params": None, "error": None}
        return asdict(loaded)

    @routes.get("/plugins", summary="List the installed plugins", **answers(shapes.Plugins))
    async def plugins() -> dict[str, Any]:
        registry = await asyncio.to_thread(load_registry)
        return {
            "plugins": [asdict(plugin) for plugin in registry.plugins],
            "total": len(registry.plugins),
            "failed_plugins": [asdict(plugin) for plugin in registry.failed],
        }

    @routes.post("/plugins", summary="Not supported: always 403", **answers())
    async def install_plugin() -> None:
        raise PermissionDenied(_FIXED_PLUGINS)

    @routes.delete("/plugins/{name:any_text}", summary="Not supported: always 403", **answers())
    async def remove_plugin(name: str) -> None:
        raise PermissionDenied(_FIXED_PLUGINS)

    return routes


def identify(http: Request) -> str:
    """Return the name of the client's API key. On a server without keys, return a digest of
    whatever key the client sends; empty if it sends none."""
    known = current_key.get()
    key = known.name if known else next(filter(None, presented_keys(http.headers)), "")
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def _check_size(params: dict[str, Any]) -> None:
    size = len(json.dumps(params))
    if size > MAX_PARAMS_BYTES:
        message = f"load_params: {size} bytes as JSON; the limit is {MAX_PARAMS_BYTES}"
        raise InvalidRequest(message, "load_params", MAX_PARAMS_BYTES, size)


def _schema(pipeline: Pipeline) -> dict[str, Any]:
    return {
        "id": pipeline.id,
        "name": pipeline.name,
        "description": pipeline.description,
        "version": pipeline.version,
        "config_schema": pipeline.schema(),
        "plugin_name": pipeline.plugin_name,
    }


async def _warm_up(
    context: Context, http: Request, pipeline: Pipeline, params: dict[str, Any]
) -> None:
    """Have the built-in pipeline's model answer once. Raises what the model raises."""
    if pipeline.pipeline_class is not MoondreamPipeline:
        return
    model = context.catalog.resolve(None, "moondream")
    task = task_of(MoondreamConfig.model_validate(params))
    sampling = context.build_sampling(max_tokens=1)
    request = context.build_request(http, model, task, sampling, None)
    picture = PictureFile(_GRAY, "load_params")
    async with aclosing(context.service.generate(request, [picture])) as deltas:
        async for _ in deltas:
            pass
