"""A model that needs no weights: its next token is a known function of everything that it has read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from raylens.core.types import Caption, Findings, SamplingParams, VisionRequest
from raylens.engine.model import (
    KVRows,
    KVShape,
    ModelOutput,
    PictureInput,
    Pixels,
    PrefillChunk,
    Prompt,
    TokenPolicy,
)

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
    """GPT-2's table backwards: printable bytes stand for themselves, the others come from U+0100
    on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    code = ord(symbol)
    if code < 0x100:
        return code
    return [byte for byte in range(256) if byte not in plain][code - 0x100]


def next_token(history: Sequence[int]) -> int:
    """The rule: letters that depend on all that was read, and an end every few tokens."""
    mixed = sum((place + 1) * token for place, token in enumerate(history))
    return EOS if mixed % 23 == 0 else 97 + mixed % 26


def answer(prompt: Sequence[int], max_tokens: int, end: bool = True) -> str:
    """What the model says to a prompt that it reads alone; ``end``: whether it ever ends by itself."""
    history, text = list(prompt), ""
    for _ in range(max_tokens):
        token = next_token(history)
        if token == EOS and end:
            break
        text += chr(token) if token != EOS else ""
        history.append(token)
    return text


ONE_NUMBER = KVShape(layers=1, heads=1, head_dim=1, dtype=torch.float32, device="cpu")


@dataclass
class FakeModel:
    """Keeps what it reads in the engine's cache, and nowhere else.

    Fails in prefill of the token 666, and in the third decode step of 667; what it says to 668 is
    not a number. A picture's features are its bytes; encoding takes one slice for each.
    """

    max_length: int = 64
    tasks: frozenset[str] = frozenset({"chat"})
    device: str = "cpu"
    tokenizer: Tokenizer = field(default_factory=byte_tokenizer)
    eos_ids: frozenset[int] = frozenset({EOS})
    vocabulary: int = 257
    kv_shape: KVShape = ONE_NUMBER
    token_policy: TokenPolicy | None = None
    batches: list[int] = field(default_factory=list)
    """Rows of each decode step."""
    prefilled: int = 0
    """Tokens of prompts that were read."""
    groups: list[int] = field(default_factory=list)
    """Prompts of each prefill."""
    encoded: int = 0

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        return Prompt(tuple(request.id.encode()))

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        features = []
        for picture in pictures:
            yield
            self.encoded += 1
            features.append(torch.tensor([float(byte) for byte in picture.data])[:, None])
        return features

    def prefill(
        self, parts: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        if any(666 in part.token_ids for part in parts):
            raise RuntimeError("666")
        self.groups.append(len(parts))
        whole = sum(len(part.token_ids) for part in parts)
        if whole > tokens:  # all that can't be cut: half of its work in a slice of its own
            yield
        self.prefilled += whole
        return _scores([self._read(part, row) for part, row in zip(parts, rows(), strict=True)])

    def _read(self, part: PrefillChunk, row: KVRows) -> Tensor:
        end = part.start + len(part.token_ids)
        assert part.positions[0].tolist() == list(range(part.start, end))
        read = torch.tensor([float(token) for token in part.token_ids])
        for at, shown in part.features:
            read[at : at + len(shown)] = shown[:, 0]
        row.layers[0][:, 0, 0, part.start : end, 0] = torch.stack([read, read + 1])
        return self._logits(row, 0, end)

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        tokens = iter(token_ids.tolist())
        logits = []
        for group in groups:
            for row, length in enumerate(group.lengths):
                token = next(tokens)
                group.layers[0][:, row, 0, length, 0] = torch.tensor([token, token + 1])
                if group.layers[0][0, row, 0, 0, 0] == 667 and length >= 4:
                    raise RuntimeError("667")
                logits.append(self._logits(group, row, length + 1))
        assert next(tokens, None) is None
        self.batches.append(len(token_ids))
        return _scores(logits)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        return Findings()

    def _logits(self, rows: KVRows, row: int, length: int) -> Tensor:
        keys, values = rows.layers[0][:, row, 0, :length, 0].tolist()
        history = [int(key) for key in keys]
        assert values == [key + 1 for key in keys]
        logits = torch.zeros(self.vocabulary)
        logits[next_token(history)] = torch.nan if history[0] == 668 else 5.0
        return logits


def _scores(logits: Sequence[Tensor]) -> ModelOutput:
    """The state of a row is its best token."""
    stacked = torch.stack(list(logits))
    return ModelOutput(stacked, stacked.argmax(-1, keepdim=True).float())


def request(deadline: float, **sampling: Any) -> VisionRequest:
    """A request whose task the fake model never looks at."""
    return VisionRequest("r", "m", Caption(), deadline, SamplingParams(**sampling))
