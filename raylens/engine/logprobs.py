"""How likely a token was, and what could have stood in its place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import Tensor

from raylens.core.types import TokenLogprob

LEAST = -9999.0
"""Stands for -inf, which JSON has no word for; OpenAI's and vLLM's servers say the same."""


def measure(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logprobs of the tokens (rows,), and of each row's ``count`` most likely ones, from the best
    one down, among which the token may be: theirs and their ids, (rows, count) both. All on the
    device of ``logits``.

    ``logits``, (rows, vocabulary) of any type, are the model's own, before masks, penalties and
    temperature, as in vLLM (``logprobs_mode="raw_logprobs"``).
    """
    count = min(count, logits.shape[1])
    if logits.device.type != "cpu":
        logits = logits.double()
        norm = logits.logsumexp(-1, keepdim=True)
        top, ids = logits.topk(count)
        return (logits.gather(1, tokens[:, None]) - norm)[:, 0], top - norm, ids
    rows = logits.float().numpy()  # numpy, for the reason in sampling.py
    best = rows.max(-1, keepdims=True)
    norm = best + np.log(np.exp(rows.astype(np.float64) - best).sum(-1, keepdims=True))
    found = (
        rows.argpartition(-count, -1)[:, -count:]
        if count
        else np.empty((len(rows), 0), dtype=np.int64)
    )
    order = (-np.take_along_axis(rows, found, 1)).argsort(-1, kind="stable")
    found = np.take_along_axis(found, order, 1)
    chosen = np.take_along_axis(rows, tokens.numpy()[:, None], 1) - norm
    best_found = np.take_along_axis(rows, found, 1) - norm
    return torch.from_numpy(chosen[:, 0]), torch.from_numpy(best_found), torch.from_numpy(found)


def token_logprob(
    token_id: int, logprob: float, top: Sequence[float], ids: Sequence[int], tokenizer: Tokenizer
) -> TokenLogprob:
    """What ``measure`` found, as it is told."""
    alternatives = tuple(
        _token_logprob(i, value, tokenizer) for i, value in zip(ids, top, strict=True)
    )
    return _token_logprob(token_id, logprob, tokenizer, alternatives)


def token_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """The exact bytes of a token, also where it is a part of a character; empty for an id that has
    none.

    Special tokens, and others that were added to a vocabulary, give their text.
    """
    added = _added(tokenizer).get(token_id)
    if added is not None:
        return added
    token = tokenizer.id_to_token(token_id)
    if token is None:
        return b""
    if isinstance(tokenizer.decoder, ByteLevel):
        return bytes(_BYTES[symbol] for symbol in token)
    return tokenizer.decode([token_id], skip_special_tokens=False).encode()


def _token_logprob(
    token_id: int, logprob: float, tokenizer: Tokenizer, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    data = token_bytes(token_id, tokenizer)
    return TokenLogprob(data.decode(errors="replace"), data, max(float(logprob), LEAST), top)


@lru_cache(8)
def _added(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Asking the tokenizer each time would build the whole table; a tokenizer that is in use is not
    added to."""
    return {
        token_id: token.content.encode()
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
    }


def _table() -> dict[str, int]:
    """GPT-2's ``bytes_to_unicode`` backwards: printable bytes stand for themselves, the others from
    U+0100 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = {symbol: ord(symbol) for symbol in alphabet if ord(symbol) < 0x100}
    others = sorted(set(range(256)) - set(plain.values()))
    return plain | dict(
        zip((symbol for symbol in alphabet if ord(symbol) >= 0x100), others, strict=True)
    )


_BYTES = _table()
