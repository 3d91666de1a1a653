"""The generate dialect: one route for chats with pictures and videos, and what models take of
memory.

Format: the VLM server's API, whose defaults for sampling differ from those of the other dialects.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from raylens.api.answers import answers
from raylens.api.answers import services as shapes
from raylens.api.body import RecipeField
from raylens.api.context import Context
from raylens.api.openai_request import Integer
from raylens.core.errors import ModelFailed, ModelNotLoaded
from raylens.core.types import Chat, MemoryUsage
from raylens.core.wire import Messages, SparseBody, read_messages

PATH = "/api/v1/generate"
GIB = 2**30
RETRY_AFTER_S = 2.0


class GenerateRequest(SparseBody):
    """Body of ``POST /api/v1/generate``.

    An ``image`` or ``video`` part is a URL, raw base64 or a path in the media folder. ``model`` and
    ``recipe`` are our own.
    """

    messages: Messages
    max_new_tokens: Annotated[Integer, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] = 0.7
    top_p: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.9
    """0 means greedy."""
    model: str | None = None
    recipe: RecipeField = None


def router(context: Context) -> APIRouter:
    """Return the dialect's routes."""
    routes = APIRouter(tags=["Generate"])

    @routes.post(PATH, summary="Answer a chat with pictures", **answers(shapes.Generated))
    async def generate(body: GenerateRequest, http: Request) -> dict[str, Any]:
        model = context.catalog.resolve(body.model, "generate")
        messages, urls = read_messages(body.messages, "messages")
        texts = sum(message.text_length for message in body.messages)
        context.check_text_length(texts, "messages")
        pictures = await context.read_media(http, urls, "messages", accept_base64=True)
        sampling = context.build_sampling(
            max_tokens=body.max_new_tokens,
            capped=True,
            temperature=body.temperature if body.top_p else 0.0,
            top_p=body.top_p or None,
        )
        request = context.build_request(http, model, Chat(messages), sampling, body.recipe)
        async with aclosing(context.service.generate(request, pictures)) as stream:
            deltas = [delta async for delta in stream]
        usage = deltas[-1].usage if deltas else None
        if usage is None:
            raise ModelFailed("the answer ended early")
        answer = {
            "response": "".join(delta.text for delta in deltas),
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
            "processing_time": round(time.time() - http.state.received_at, 4),
        }
        warnings = [warning for delta in deltas for warning in delta.warnings]
        return {**answer, "warnings": warnings} if warnings else answer

    @routes.get(
        "/vram_status", summary="Show the memory that the models take", **answers(shapes.Memory)
    )
    async def vram_status() -> dict[str, Any]:
        return summarize(_reported(await context.service.memory_usage()))

    @routes.post(
        "/clear_vram",
        summary="Empty the models' caches, and return unused memory",
        **answers(shapes.Cleared),
    )
    async def clear_vram() -> dict[str, Any]:
        usages_before = await context.service.memory_usage()
        usages_after = await context.service.clear_memory()
        # A replica that answers only once has neither taken nor given anything.
        replicas = {usage.replica for usage in usages_before} & {
            usage.replica for usage in usages_after
        }
        before, after = (
            summarize(_reported([usage for usage in usages if usage.replica in replicas]))
            for usages in (usages_before, usages_after)
        )
        freed = round(max(0.0, before["reserved_gb"] - after["reserved_gb"]), 3)
        device = after["device"]
        return {
            "message": f"Caches cleared; {freed:g} GB given back",
            "device": device,
            "freed_gb": freed,
            "before": before,
            "after": after,
        }

    return routes


def _reported(usages: list[MemoryUsage]) -> list[MemoryUsage]:
    """Return the usages. Raises ``ModelNotLoaded`` if there are none."""
    if not usages:
        message = "no replica of a model has reported its memory"
        raise ModelNotLoaded(message, None, retry_after=RETRY_AFTER_S)
    return usages


def summarize(usages: list[MemoryUsage]) -> dict[str, Any]:
    """Return the memory of all replicas together, in GiB.

    If some replicas hold GPUs, only GPU memory counts, and a GPU that several share counts once.
    Otherwise it is the memory of the replicas' processes, and that of their nodes.
    """
    on_gpu = [usage for usage in usages if usage.device.startswith("cuda")]
    counted = on_gpu or usages
    allocated = sum(usage.allocated for usage in counted)
    reserved = sum(usage.reserved for usage in counted)
    total = sum({usage.unit: usage.total for usage in counted}.values())
    return {
        "device": "cuda" if on_gpu else "cpu",
        "allocated_gb": round(allocated / GIB, 3),
        "reserved_gb": round(reserved / GIB, 3),
        "free_gb": round((total - allocated) / GIB, 3),
        "total_gb": round(total / GIB, 3),
        "usage_percentage": round(100 * allocated / total, 1) if total else 0.0,
        "replicas": len(counted),
    }
