from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from raylens.core.types import TokenLogprob
from raylens.engine.logprobs import (
    MIN_LOGPROB,
    compute_logprobs,
    make_token_logprob,
    token_bytes,
)
from testing.tokenizers import byte_tokenizer

POCKET = Tokenizer.from_file(
    str(Path(__file__).parents[4] / "models" / "pocket" / "smolvlm" / "tokenizer.json")
)


def token_logprob(
    logits: torch.Tensor, token_id: int, count: int, tokenizer: Tokenizer
) -> TokenLogprob:
    """Return the logprob of a token, computed from one row of logits."""
    logprobs, top_logprobs, top_ids = compute_logprobs(
        logits[None], torch.tensor([token_id]), count
    )
    return make_token_logprob(
        token_id, float(logprobs[0]), top_logprobs[0].tolist(), top_ids[0].tolist(), tokenizer
    )


def test_logprobs_are_those_of_the_models_own_logits() -> None:
    logits = torch.randn(600, generator=torch.Generator().manual_seed(1)) * 3
    expected = torch.log_softmax(logits, -1)
    entry = token_logprob(logits, 300, 5, POCKET)
    assert entry.logprob == pytest.approx(float(expected[300]), abs=1e-5)
    assert entry.data == token_bytes(300, POCKET)
    best = expected.topk(5)
    assert [top.logprob for top in entry.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [top.data for top in entry.top] == [
        token_bytes(i, POCKET) for i in best.indices.tolist()
    ]
    assert all(top.top == () for top in entry.top)


def test_there_are_as_many_alternatives_as_requested() -> None:
    logits = torch.arange(257.0)
    assert token_logprob(logits, 97, 0, byte_tokenizer()).top == ()
    assert len(token_logprob(logits, 97, 1000, byte_tokenizer()).top) == 257
    assert token_logprob(logits.bfloat16(), 97, 1, byte_tokenizer()).text == "a"


def test_an_impossible_token_has_a_logprob_that_json_can_represent() -> None:
    logits = torch.full((257,), -torch.inf)
    logits[97] = 0.0
    entry = token_logprob(logits, 98, 2, byte_tokenizer())
    assert entry.logprob == MIN_LOGPROB
    assert entry.top[0].logprob == 0.0


def test_bytes_are_exact_if_a_token_is_half_a_character() -> None:
    tokenizer = byte_tokenizer()
    assert [token_bytes(i, tokenizer) for i in range(256)] == [bytes([i]) for i in range(256)]
    entry = token_logprob(torch.zeros(256), "é".encode()[0], 0, tokenizer)
    assert (entry.text, entry.data) == ("\ufffd", b"\xc3")


def test_bytes_of_all_tokens_of_a_text_are_the_text() -> None:
    for text in ("a red circle", " naïve\n\t 日本 🙂", "3 × 4"):
        ids = POCKET.encode(text, add_special_tokens=False).ids
        assert b"".join(token_bytes(i, POCKET) for i in ids).decode() == text


def test_special_tokens_give_their_text_and_unknown_ids_nothing() -> None:
    eos = POCKET.token_to_id("<end_of_utterance>")
    assert eos is not None
    assert token_bytes(eos, POCKET) == b"<end_of_utterance>"
    assert token_bytes(10_000, POCKET) == b""
