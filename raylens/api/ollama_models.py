"""The models in Ollama's API.

Format: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request

from raylens.api.answers import answers
from raylens.api.answers import ollama as shapes
from raylens.api.context import Context
from raylens.api.ollama_request import ShowRequest, parse_body
from raylens.api.picture_body import describe_json
from raylens.core.config import ModelConfig
from raylens.core.types import REASONING, ModelInfo

TAGS_PATH = "/api/tags"
SHOW_PATH = "/api/show"
PS_PATH = "/api/ps"
VERSION_PATH = "/api/version"
VERSION = "0.12.6"
"""The version of Ollama whose API this is. Tools check it before they use what is new."""
LATEST = ":latest"
"""The tag that Ollama's clients add to a name without one."""


def router(context: Context) -> APIRouter:
    """Return the routes about models."""
    routes = APIRouter(tags=["Ollama"])

    @routes.head(TAGS_PATH, include_in_schema=False)
    @routes.get(TAGS_PATH, summary="List the models, as with Ollama", **answers(shapes.Models))
    async def tags() -> dict[str, Any]:
        return {"models": [_model_as_json(model) for model in context.config.models]}

    @routes.head(PS_PATH, include_in_schema=False)
    @routes.get(
        PS_PATH, summary="List the loaded models, as with Ollama", **answers(shapes.LoadedModels)
    )
    async def ps() -> dict[str, Any]:
        infos = await context.fetch_model_infos(context.catalog.models)
        never = datetime.max.replace(tzinfo=UTC).isoformat()
        return {
            "models": [
                {**_model_as_json(model), "expires_at": never, "size_vram": 0}
                for model in context.config.models
                if isinstance(infos[model.name], ModelInfo)
            ]
        }

    @routes.post(
        SHOW_PATH,
        summary="Show a model, as with Ollama",
        openapi_extra=describe_json(ShowRequest),
        **answers(shapes.ShownModel),
    )
    async def show(http: Request) -> dict[str, Any]:
        body = parse_body(await http.body(), ShowRequest)
        name = resolve(context, body.model or body.name)
        info = (await context.fetch_model_infos([name]))[name]
        tasks = info.tasks if isinstance(info, ModelInfo) else ()
        model = context.catalog.models[name]
        family = model.family or "unknown"
        capabilities = ["completion", "vision", "tools"]
        return {
            **_model_as_json(model),
            "modelfile": f"FROM {model.checkpoint}\n",
            "parameters": "",
            "template": "",
            "license": "",
            "model_info": {"general.architecture": family, "general.basename": name},
            "capabilities": capabilities + ["thinking"] * (REASONING in tasks),
        }

    @routes.head(VERSION_PATH, include_in_schema=False)
    @routes.get(
        VERSION_PATH,
        summary="Show the version of Ollama whose API this is",
        **answers(shapes.Version),
    )
    async def version() -> dict[str, str]:
        return {"version": VERSION}

    return routes


def resolve(context: Context, name: str) -> str:
    """Return the model's own name. Raises ``UnknownModel``."""
    if not context.catalog.knows(name):
        name = name.removesuffix(LATEST)
    return context.catalog.resolve(name, "openai")


def _model_as_json(model: ModelConfig) -> dict[str, Any]:
    family = model.family or "unknown"
    digest = hashlib.sha256(f"{model.name}\0{model.checkpoint}".encode()).hexdigest()
    return {
        "name": f"{model.name}{LATEST}",
        "model": f"{model.name}{LATEST}",
        "modified_at": "1970-01-01T00:00:00Z",
        "size": 0,
        "digest": digest,
        "details": {
            "parent_model": "",
            "format": "safetensors",
            "family": family,
            "families": [family],
            "parameter_size": "",
            "quantization_level": model.quantize or model.dtype,
        },
    }
