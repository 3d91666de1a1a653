"""What the engine is measured against: plain ``generate``, alone and in static batches behind ``@serve.batch``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve

from benchmarks.engine.checkpoint import REFERENCES
from benchmarks.engine.load import Answer, Ask
from raylens.engine.model import Prompt

BATCH = 8
_batched: Callable[[Any], Any] = serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.05)


@dataclass(frozen=True)
class Question:
    """A prompt, and how many tokens its answer takes."""

    prompt: Prompt
    tokens: int


class Generate:
    """Greedy ``generate`` of transformers; short prompts are padded on the left."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, questions: Sequence[Question]) -> None:
        """Answers all in one batch, which goes on until the longest answer is complete."""
        tokens = max(question.tokens for question in questions)
        given = self._inputs([question.prompt for question in questions])
        with torch.inference_mode():
            ids = self._model.generate(**given, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
        made = ids.shape[1] - given["input_ids"].shape[1]
        assert made == tokens, f"{made} tokens instead of {tokens}"

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        config, device, dtype = self._model.config, self._model.device, self._model.dtype
        width = max(len(prompt.token_ids) for prompt in prompts)
        pad = config.text_config.pad_token_id
        ids = torch.tensor([(pad,) * (width - len(prompt.token_ids)) + prompt.token_ids for prompt in prompts])
        lengths = torch.tensor([len(prompt.token_ids) for prompt in prompts])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        given = {"input_ids": ids, "attention_mask": mask}
        if config.model_type == "qwen2_5_vl":
            shown = [picture.data for prompt in prompts for picture in prompt.pictures]
            grids = [[patches.grid.frames, patches.grid.rows, patches.grid.columns] for patches in shown]
            given["mm_token_type_ids"] = (ids == config.image_token_id).int()
            given["image_grid_thw"] = torch.tensor(grids)
            pixels = np.concatenate([patches.values for patches in shown])
        else:
            pixels = np.stack([[tile.data for tile in prompt.pictures] for prompt in prompts])
        given["pixel_values"] = (torch.from_numpy(pixels) / 127.5 - 1).to(dtype)
        return {name: tensor.to(device) for name, tensor in given.items()}


class StaticBatches:
    """The deployment of (b)."""

    def __init__(self, folder: str, family: str, dtype: torch.dtype, device: str, threads: int) -> None:
        # One thread computes, as in the engine: OpenMP's teams of several would slow each other. Ray gives its workers
        # one core; the setting belongs to the thread.
        self._computing = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._generate = Generate(REFERENCES[family].from_pretrained(folder, dtype=dtype).to(device).eval())

    @_batched
    async def caption(self, questions: list[Question]) -> list[int]:
        """A caller sends one question; so many tokens were answered."""
        await asyncio.get_running_loop().run_in_executor(self._computing, self._generate, questions)
        return [question.tokens for question in questions]


@contextmanager
def static_batches(
    folder: Path, family: str, dtype: torch.dtype, device: str, threads: int
) -> Iterator[Callable[[Question], Ask]]:
    """A Serve application in a Ray of its own; gone at the end, so that it shares the cores with nothing else."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(StaticBatches).options(
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": 1, "num_gpus": float(device.startswith("cuda"))},
        )
        application = deployment.bind(str(folder), family, dtype, device, threads)
        handle = serve.run(application, name="static-batches", route_prefix=None)

        def asking(question: Question) -> Ask:
            async def ask() -> Answer:
                answer = Answer(question.tokens)
                await handle.caption.remote(question)
                answer.arrived()
                return answer

            return ask

        yield asking
    finally:
        serve.shutdown()
        ray.shutdown()


def alone(generate: Generate, question: Question) -> Answer:
    """(a): the answer comes whole."""
    answer = Answer(question.tokens)
    generate([question])
    answer.arrived()
    return answer
