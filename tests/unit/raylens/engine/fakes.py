"""A model that needs no weights: its next token is a known function of everything that it has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from raylens.engine.model import Pixels, Prompt
from raylens.types import SamplingParams, VisionRequest

EOS = 256


def byte_tokenizer() -> Tokenizer:
    """Token i is the byte i."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = {_byte(symbol): symbol for symbol in alphabet}
    tokenizer = Tokenizer(models.BPE(vocab={by_byte[i]: i for i in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte(symbol: str) -> int:
    """GPT-2's table backwards: printable bytes stand for themselves, the others come from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    code = ord(symbol)
    if code < 0x100:
        return code
    return [byte for byte in range(256) if byte not in plain][code - 0x100]


def next_token(history: Sequence[int]) -> int:
    """The rule: letters that depend on all that was read, and an end every few tokens."""
    mixed = sum((place + 1) * token for place, token in enumerate(history))
    return EOS if mixed % 23 == 0 else 97 + mixed % 26


def answer(prompt: Sequence[int], max_tokens: int) -> str:
    """What the model says to a prompt that it reads alone."""
    history, text = list(prompt), ""
    for _ in range(max_tokens):
        token = next_token(history)
        if token == EOS:
            break
        text += chr(token)
        history.append(token)
    return text


@dataclass
class FakeModel:
    """Fails in prefill of the token 666, and in the third decode step of 667; what it says to 668 is not a number."""

    max_length: int = 64
    tasks: frozenset[str] = frozenset({"chat"})
    device: str = "cpu"
    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    eos_ids: frozenset[int] = frozenset({EOS})
    batches: list[int] = field(default_factory=list)
    prefilled: int = 0
    selected: int = 0

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        return Prompt(tuple(request.id.encode()))

    def prefill(self, prompts: Sequence[Prompt], outputs: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        rows = [[*prompt.token_ids, *output] for prompt, output in zip(prompts, outputs, strict=True)]
        if any(666 in row for row in rows):
            raise RuntimeError("666")
        self.batches.append(len(rows))
        self.prefilled += len(rows)
        cache = {"rows": rows}
        return self._logits(rows), cache

    def decode(self, token_ids: Sequence[int], cache: Any) -> Tensor:
        for row, token in zip(cache["rows"], token_ids, strict=True):
            row.append(token)
            if row[0] == 667 and len(row) > 4:
                raise RuntimeError("667")
        self.batches.append(len(token_ids))
        return self._logits(cache["rows"])

    def select(self, cache: Any, rows: Sequence[int]) -> None:
        self.selected += 1
        cache["rows"] = [list(cache["rows"][row]) for row in rows]

    def _logits(self, rows: list[list[int]]) -> Tensor:
        logits = torch.zeros(len(rows), 257)
        for row, history in enumerate(rows):
            logits[row, next_token(history)] = torch.nan if history[0] == 668 else 5.0
        return logits


def request(deadline: float, **sampling: Any) -> VisionRequest:
    return VisionRequest(id="r", model="m", task=None, deadline=deadline, sampling=SamplingParams(**sampling))  # type: ignore[arg-type]
