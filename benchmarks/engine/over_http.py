"""The same weights behind the whole graph: ingress, preprocessor and one replica of the model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.engine.bench import HOUR, QUESTION, Options
from benchmarks.engine.load import Answer, Ask
from benchmarks.pocket import chat_body
from testing.server import running

MODEL = "random"


@contextmanager
def server(options: Options, folder: Path, batch: int) -> Iterator[str]:
    """The URL of a server of its own, after the shipped configuration."""

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
        kept = [
            part
            for part in application["deployments"]
            if part["name"] in ("Ingress", "Preprocessor")
        ]
        resources = {"num_cpus": 0.5, "num_gpus": int(options.device.startswith("cuda"))}
        own = {"name": MODEL, "num_replicas": 1, "ray_actor_options": resources}
        application["deployments"] = [*kept, own]

    with running(change=change) as url:
        yield url


def asking(client: httpx.AsyncClient, jpeg: bytes, tokens: int) -> Ask:
    """A streamed chat about a picture at ``detail: low``."""
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    body = chat_body(MODEL, QUESTION, url, "low", text_first=False) | {
        "stream": True,
        "max_tokens": tokens,
    }

    async def ask() -> Answer:
        answer, reason = Answer(tokens), None
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                if choice["delta"].get("content"):
                    answer.arrived()
                reason = choice["finish_reason"] or reason
        assert reason == "length", f"the answer ended with {reason}"
        return answer

    return ask
