"""A model without weights: its next token is a known function of all tokens that it has read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from raylens.core.types import Caption, Findings, SamplingParams, VisionRequest
from raylens.engine.grammar import AnswerFormat
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
from raylens.engine.structured import GrammarCompiler, GrammarState
from testing.tokenizers import byte_tokenizer

EOS = 256
BREAKS_PREFILL = 666
BREAKS_DECODE = 667
GIVES_NAN = 668


def next_token(history: Sequence[int]) -> int:
    """Return a letter that depends on the whole history, or, every few tokens, EOS."""
    mixed = sum((index + 1) * token for index, token in enumerate(history))
    return EOS if mixed % 23 == 0 else 97 + mixed % 26


def answer(prompt: Sequence[int], max_tokens: int, stops_at_eos: bool = True) -> str:
    """Return the model's answer to a prompt that is alone in its batch."""
    history = list(prompt)
    text = ""
    for _ in range(max_tokens):
        token = next_token(history)
        if token == EOS and stops_at_eos:
            break
        text += chr(token) if token != EOS else ""
        history.append(token)
    return text


def compile_schema(compiler: GrammarCompiler, schema: str) -> GrammarState:
    """Return the state of an answer that must follow a JSON schema."""
    return compiler.compile(AnswerFormat(schema)).state


ONE_NUMBER_PER_TOKEN = KVSpec(
    num_layers=1, num_kv_heads=1, head_dim=1, dtype=torch.float32, device="cpu"
)


@dataclass
class FakeModel(Model):
    """Keeps the tokens that it reads in the engine's KV cache, and nowhere else.

    Prefill fails if a prompt contains ``BREAKS_PREFILL``. The third decode step fails if a prompt
    begins with ``BREAKS_DECODE``. The logits are NaN if it begins with ``GIVES_NAN``. The features
    of a picture are its bytes. Encoding takes one slice a picture.
    """

    max_length: int = 64
    tasks: frozenset[str] = frozenset({"chat"})
    device: str = "cpu"
    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    eos_ids: frozenset[int] = frozenset({EOS})
    vocab_size: int = 257
    kv_spec: KVSpec = ONE_NUMBER_PER_TOKEN
    token_policy: TokenPolicy | None = None
    decode_batches: list[int] = field(default_factory=list)
    """Rows of each decode step."""
    prefilled_tokens: int = 0
    prefill_batches: list[int] = field(default_factory=list)
    """Prompts of each prefill."""
    encoded_pictures: int = 0

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        return Prompt(tuple(request.id.encode()))

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        features = []
        for picture in pictures:
            yield
            self.encoded_pictures += 1
            features.append(torch.tensor([float(byte) for byte in picture.data])[:, None])
        return features

    def prefill(
        self,
        chunks: Sequence[PrefillChunk],
        get_rows: Callable[[], Sequence[KVRows]],
        max_slice_tokens: int,
    ) -> Generator[None, None, ModelOutput]:
        if any(BREAKS_PREFILL in chunk.token_ids for chunk in chunks):
            raise RuntimeError("prefill failed")
        self.prefill_batches.append(len(chunks))
        num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        if num_tokens > max_slice_tokens:  # as a model that splits its layers over two slices
            yield
        self.prefilled_tokens += num_tokens
        return _model_output(
            [self._read(chunk, row) for chunk, row in zip(chunks, get_rows(), strict=True)]
        )

    def _read(self, chunk: PrefillChunk, row: KVRows) -> Tensor:
        end = chunk.start + len(chunk.token_ids)
        assert chunk.positions[0].tolist() == list(range(chunk.start, end))
        keys = torch.tensor([float(token) for token in chunk.token_ids])
        for index, features in chunk.features:
            keys[index : index + len(features)] = features[:, 0]
        row.layer_kv[0][:, 0, 0, chunk.start : end, 0] = torch.stack([keys, keys + 1])
        return self._logits(row, 0, end)

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        tokens = iter(token_ids.tolist())
        logits = []
        for kv_rows in rows_by_arena:
            for row, length in enumerate(kv_rows.lengths):
                token = next(tokens)
                kv_rows.layer_kv[0][:, row, 0, length, 0] = torch.tensor([token, token + 1])
                if kv_rows.layer_kv[0][0, row, 0, 0, 0] == BREAKS_DECODE and length >= 4:
                    raise RuntimeError("decode failed")
                logits.append(self._logits(kv_rows, row, length + 1))
        assert next(tokens, None) is None
        self.decode_batches.append(len(token_ids))
        return _model_output(logits)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        return Findings()

    def _logits(self, kv_rows: KVRows, row: int, length: int) -> Tensor:
        keys, values = kv_rows.layer_kv[0][:, row, 0, :length, 0].tolist()
        history = [int(key) for key in keys]
        assert values == [key + 1 for key in keys]
        logits = torch.zeros(self.vocab_size)
        logits[next_token(history)] = torch.nan if history[0] == GIVES_NAN else 5.0
        return logits


def _model_output(logits: Sequence[Tensor]) -> ModelOutput:
    """Return the output of these rows. The hidden state of a row is its best token."""
    stacked = torch.stack(list(logits))
    return ModelOutput(stacked, stacked.argmax(-1, keepdim=True).float())


def request(deadline: float, **sampling: Any) -> VisionRequest:
    """Return a request. Its task is arbitrary: the fake model ignores it."""
    return VisionRequest("r", "m", Caption(), deadline, SamplingParams(**sampling))
