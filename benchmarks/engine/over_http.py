"""The benchmark's model behind the whole graph: ingress, preprocessor and one model replica."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.engine.bench import HOUR, QUESTION, Options
from benchmarks.engine.load import Send, Timeline
from benchmarks.pocket import chat_body
from testing.server import running_server

MODEL = "random"


@contextmanager
def server(options: Options, folder: Path, batch: int) -> Iterator[str]:
    """Start a server from the shipped configuration with one model, and yield its URL."""

    def change(config: dict[str, Any]) -> None:
        (application,) = config["applications"]
        model = {
            "name": MODEL,
            "family": options.family,
            "checkpoint": str(folder),
            "dtype": options.dtype,
            "device": options.device,
            "threads": options.threads,
            "quantize": options.quantize,
            "max_tiles_per_step": options.tiles_per_step,
            "max_batch_size": batch,
        }
        application["args"]["models"] = [model]
        application["args"].setdefault("defaults", {}).update(timeout_s=HOUR, max_timeout_s=HOUR)
        deployments = [
            deployment
            for deployment in application["deployments"]
            if deployment["name"] in ("Ingress", "Preprocessor")
        ]
        resources = {"num_cpus": 0.5, "num_gpus": int(options.device.startswith("cuda"))}
        replica = {"name": MODEL, "num_replicas": 1, "ray_actor_options": resources}
        application["deployments"] = [*deployments, replica]

    with running_server(change=change) as url:
        yield url


def make_sender(client: httpx.AsyncClient, jpeg: bytes, tokens: int) -> Send:
    """Return a function that sends a streamed chat about a picture at ``detail: low``."""
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    body = chat_body(MODEL, QUESTION, url, "low", text_first=False)
    body |= {"stream": True, "max_tokens": tokens}

    async def send() -> Timeline:
        timeline = Timeline(tokens)
        reason = None
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                if choice["delta"].get("content"):
                    timeline.record_piece()
                reason = choice["finish_reason"] or reason
        assert reason == "length", f"the answer ended with finish_reason {reason}"
        return timeline

    return send
