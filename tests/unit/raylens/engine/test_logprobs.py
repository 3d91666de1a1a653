from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from raylens.core.types import TokenLogprob
from raylens.engine.logprobs import LEAST, measure, token_bytes, token_logprob
from tests.unit.raylens.engine.fakes import byte_tokenizer

POCKET = Tokenizer.from_file(
    str(Path(__file__).parents[4] / "models" / "pocket" / "smolvlm" / "tokenizer.json")
)


def logprobs_of(
    logits: torch.Tensor, token_id: int, count: int, tokenizer: Tokenizer
) -> TokenLogprob:
    """What is told of a token that was chosen by one row of logits."""
    chosen, top, ids = measure(logits[None], torch.tensor([token_id]), count)
    return token_logprob(token_id, float(chosen[0]), top[0].tolist(), ids[0].tolist(), tokenizer)


def test_logprobs_are_those_of_the_models_own_logits() -> None:
    logits = torch.randn(600, generator=torch.Generator().manual_seed(1)) * 3
    expected = torch.log_softmax(logits, -1)
    said = logprobs_of(logits, 300, 5, POCKET)
    assert said.logprob == pytest.approx(float(expected[300]), abs=1e-5)
    assert said.data == token_bytes(300, POCKET)
    best = expected.topk(5)
    assert [other.logprob for other in said.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert [other.data for other in said.top] == [
        token_bytes(i, POCKET) for i in best.indices.tolist()
    ]
    assert all(other.top == () for other in said.top)


def test_as_many_alternatives_as_asked_for() -> None:
    logits = torch.arange(257.0)
    assert logprobs_of(logits, 97, 0, byte_tokenizer()).top == ()
    assert len(logprobs_of(logits, 97, 1000, byte_tokenizer()).top) == 257
    assert logprobs_of(logits.bfloat16(), 97, 1, byte_tokenizer()).text == "a"


def test_what_a_model_rules_out_has_a_number_that_json_can_say() -> None:
    logits = torch.full((257,), -torch.inf)
    logits[97] = 0.0
    said = logprobs_of(logits, 98, 2, byte_tokenizer())
    assert said.logprob == LEAST
    assert said.top[0].logprob == 0.0


def test_bytes_are_exact_where_a_token_is_half_a_character() -> None:
    tokenizer = byte_tokenizer()
    assert [token_bytes(i, tokenizer) for i in range(256)] == [bytes([i]) for i in range(256)]
    said = logprobs_of(torch.zeros(256), "é".encode()[0], 0, tokenizer)
    assert (said.text, said.data) == ("\ufffd", b"\xc3")


def test_bytes_of_a_text_are_the_text() -> None:
    for text in ("a red circle", " naïve\n\t 日本 🙂", "3 × 4"):
        ids = POCKET.encode(text, add_special_tokens=False).ids
        assert b"".join(token_bytes(i, POCKET) for i in ids).decode() == text


def test_special_tokens_give_their_text_and_unknown_ids_nothing() -> None:
    eos = POCKET.token_to_id("<end_of_utterance>")
    assert eos is not None
    assert token_bytes(eos, POCKET) == b"<end_of_utterance>"
    assert token_bytes(10_000, POCKET) == b""
