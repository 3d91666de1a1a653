"""A model that repeats the question: the smallest that the engine runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from raylens.core.types import Findings, Query, VisionRequest
from raylens.engine.model import (
    KVRows,
    KVSpec,
    Model,
    ModelOutput,
    PictureInput,
    Pixels,
    PrefillChunk,
    Prompt,
    TokenPolicy,
)
from testing.tokenizers import byte_tokenizer

EOS = 256


class EchoModel(Model):
    """Its next token follows from its position: the answer is the prompt, ``repeat`` times."""

    tasks = frozenset({"query"})
    device = "cpu"
    eos_ids = frozenset({EOS})
    vocab_size = EOS + 1
    max_length = 512
    kv_spec = KVSpec(num_layers=1, num_kv_heads=1, head_dim=1, dtype=torch.float32, device="cpu")
    token_policy: TokenPolicy | None = None

    def __init__(self, checkpoint: str, repeat: int) -> None:
        self.checkpoint = checkpoint
        self.tokenizer: Tokenizer = byte_tokenizer()
        self._repeat = repeat
        self._prompt: tuple[int, ...] = ()

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        assert isinstance(request.task, Query)
        return Prompt(tuple(request.task.question.encode()))

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        yield
        return []

    def prefill(
        self,
        chunks: Sequence[PrefillChunk],
        get_rows: Callable[[], Sequence[KVRows]],
        max_slice_tokens: int,
    ) -> Generator[None, None, ModelOutput]:
        yield
        (chunk,) = chunks
        self._prompt = tuple(chunk.token_ids)
        return self._output(0)

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        (position,) = positions
        return self._output(position - len(self._prompt) + 1)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        return Findings()

    def _output(self, answered: int) -> ModelOutput:
        is_complete = answered >= self._repeat * len(self._prompt)
        token = EOS if is_complete else self._prompt[answered % len(self._prompt)]
        logits = torch.zeros(1, self.vocab_size)
        logits[0, token] = 1.0
        return ModelOutput(logits, torch.zeros(1, 1))
