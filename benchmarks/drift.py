"""How far answers drift from float32's in each precision. Needs no Ray.

``python -m benchmarks.drift`` lets each bundled pocket model describe drawn scenes greedily in
float32. Each precision then gets the same answers token by token, and its logits are compared:

- **KL divergence**, in nats a token, of its distribution from float32's;
- **other tokens**: tokens for which its most likely one is another;
- **equal answers**: answers without such a token, which are thus its own greedy answers;
- **first difference**: the median number of the first such token, among the others.

docs/cpu.md has results.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.pocket.drawing import draw
from models.pocket.scenes import random_scene
from models.registry import load_model
from raylens.core.config import ModelConfig
from raylens.core.types import (
    Caption,
    Chat,
    ImagePart,
    Length,
    Message,
    Role,
    SamplingParams,
    TextPart,
    VisionRequest,
)
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, ModelOutput, Pixels
from raylens.engine.sequence import make_sequences

FAMILIES = ("moondream", "smolvlm", "qwen2_5_vl")
PRECISIONS = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantize": "int8"},
    "int4": {"dtype": "bfloat16", "quantize": "int4"},
}
MAX_TOKENS = 100


@dataclass
class Answer:
    """One greedy answer."""

    tokens: list[int]
    logits: Tensor
    """(tokens, vocabulary)"""


class RecordedModel:
    """A model whose logits are recorded while it answers one request at a time.

    If ``forced`` has tokens, they are the answer, whatever the logits are.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._logits: list[Tensor] = []
        self._forced: Iterator[int] = iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def prefill(self, *args: Any) -> Generator[None, None, ModelOutput]:
        return self._record((yield from self._model.prefill(*args)))

    def decode(self, *args: Any) -> ModelOutput:
        return self._record(self._model.decode(*args))

    def _record(self, output: ModelOutput) -> ModelOutput:
        self._logits.append(output.logits[0].float().clone())
        forced = next(self._forced, None)
        if forced is None:
            return output
        logits = torch.full_like(output.logits, -torch.inf)
        logits[0, forced] = 0.0
        return ModelOutput(logits, output.hidden_states)

    def answer(self, request: VisionRequest, pixels: Pixels, forced: Sequence[int] = ()) -> Answer:
        self._logits, self._forced = [], iter(forced)
        # No caches: every answer is computed whole, and its prompt in one chunk.
        limits = EngineLimits(
            max_batch_size=1, feature_bytes=0, prefix_bytes=0, max_prefill_tokens=65_536
        )
        engine = Engine(self, limits)
        prompt = self._model.prepare(request, [pixels])
        (sequence,) = make_sequences(request, prompt, self._model.tokenizer)
        engine.scheduler.add([sequence])
        while engine.has_work:
            for output in engine.step():
                assert output.error is None, output.error
        tokens = sequence.output_ids
        return Answer(tokens, torch.stack(self._logits[: len(tokens)]))


@dataclass
class Drift:
    """The figures of one precision, a number for each token or each answer."""

    divergences: list[float] = field(default_factory=list)
    differences: list[list[int]] = field(default_factory=list)
    """For each answer, the numbers of the tokens for which another one is more likely."""

    def add(self, expected: Answer, answer: Answer) -> None:
        assert answer.tokens == expected.tokens
        divergence = F.kl_div(
            answer.logits.log_softmax(-1),
            expected.logits.log_softmax(-1),
            reduction="none",
            log_target=True,
        ).sum(-1)
        self.divergences += divergence.clamp(min=0).tolist()
        differs = answer.logits.argmax(-1) != expected.logits.argmax(-1)
        self.differences.append(differs.nonzero().flatten().tolist())

    @property
    def row(self) -> str:
        others = sum(map(len, self.differences))
        first = [numbers[0] for numbers in self.differences if numbers]
        return " | ".join(
            (
                f"{mean(self.divergences):.1e}",
                f"{torch.tensor(self.divergences).quantile(0.99):.1e}",
                f"{others / len(self.divergences):.2%}",
                f"{1 - len(first) / len(self.differences):.1%}",
                f"{median(first):.0f}" if first else "–",
            )
        )


def requests(family: str, scenes: int, seed: int) -> Iterator[tuple[VisionRequest, Pixels]]:
    """Yield requests for long descriptions of drawn scenes, with their pictures."""
    rng = random.Random(seed)
    for _ in range(scenes):
        pixels = draw(random_scene(rng), rng)
        chat = Chat(
            (Message(Role.USER, (ImagePart(0), TextPart("Describe this image in detail."))),)
        )
        task = Caption(Length.LONG) if family == "moondream" else chat
        deadline = time.time() + 3600
        yield VisionRequest("drift", family, task, deadline, SamplingParams(MAX_TOKENS)), pixels


def load(family: str, **settings: Any) -> RecordedModel:
    config = {"name": family, "family": family, "device": "cpu", **settings}
    return RecordedModel(load_model(ModelConfig.model_validate(config)))


def measure(family: str, scenes: int, seed: int) -> Iterator[tuple[str, Drift]]:
    """Yield the drift of each precision."""
    exact = load(family, dtype="float32")
    expected = [exact.answer(*request) for request in requests(family, scenes, seed)]
    for precision, settings in PRECISIONS.items():
        model, drift = load(family, **settings), Drift()
        for (request, pixels), answer in zip(requests(family, scenes, seed), expected, strict=True):
            drift.add(answer, model.answer(request, pixels, answer.tokens))
        yield precision, drift


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=40_000)
    arguments = parser.parse_args()
    print(
        "| model | precision | KL, mean | KL, p99 | other tokens | equal answers"
        " | first difference |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for family in FAMILIES:
        for precision, drift in measure(family, arguments.scenes, arguments.seed):
            print(f"| {family} | {precision} | {drift.row} |", flush=True)


if __name__ == "__main__":
    main()
