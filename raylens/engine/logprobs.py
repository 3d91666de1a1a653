"""Log-probabilities of tokens and of their alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import Tensor

from raylens.core.types import TokenLogprob

MIN_LOGPROB = -9999.0
"""Replaces -inf, which JSON cannot represent. OpenAI's and vLLM's servers use the same number."""


def compute_logprobs(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logprob of each row's token, and the row's ``count`` most likely tokens.

    ``logits`` (rows, vocabulary), of any float dtype, are the model's own, before masks, penalties
    and temperature, as in vLLM (``logprobs_mode="raw_logprobs"``). ``tokens`` (rows,).

    Returns the logprobs of the tokens (rows,); the logprobs of the most likely tokens (rows,
    count), best first; and their ids (rows, count). A token can be among its alternatives. All
    results are on the device of ``logits``.
    """
    count = min(count, logits.shape[1])
    if logits.device.type != "cpu":
        logits = logits.double()
        log_normalizer = logits.logsumexp(-1, keepdim=True)
        top_logits, top_ids = logits.topk(count)
        logprobs = (logits.gather(1, tokens[:, None]) - log_normalizer)[:, 0]
        return logprobs, top_logits - log_normalizer, top_ids
    return _compute_on_host(logits.float().numpy(), tokens.numpy(), count)


def _compute_on_host(
    logits: NDArray[np.float32], tokens: NDArray[np.int64], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """NumPy version of :func:`compute_logprobs`; see :mod:`raylens.engine.sampling` for why."""
    best_logits = logits.max(-1, keepdims=True)
    exponentials = np.exp(logits.astype(np.float64) - best_logits)
    log_normalizer = best_logits + np.log(exponentials.sum(-1, keepdims=True))
    if count:
        top_ids = logits.argpartition(-count, -1)[:, -count:]
    else:
        top_ids = np.empty((len(logits), 0), dtype=np.int64)
    order = (-np.take_along_axis(logits, top_ids, 1)).argsort(-1, kind="stable")
    top_ids = np.take_along_axis(top_ids, order, 1)
    logprobs = np.take_along_axis(logits, tokens[:, None], 1) - log_normalizer
    top_logprobs = np.take_along_axis(logits, top_ids, 1) - log_normalizer
    return (
        torch.from_numpy(logprobs[:, 0]),
        torch.from_numpy(top_logprobs),
        torch.from_numpy(top_ids),
    )


def make_token_logprob(
    token_id: int,
    logprob: float,
    top_logprobs: Sequence[float],
    top_ids: Sequence[int],
    tokenizer: Tokenizer,
) -> TokenLogprob:
    """Return the results of :func:`compute_logprobs` for one token, with texts and bytes."""
    alternatives = tuple(
        _make_entry(top_id, top_logprob, tokenizer)
        for top_id, top_logprob in zip(top_ids, top_logprobs, strict=True)
    )
    return _make_entry(token_id, logprob, tokenizer, alternatives)


def token_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """Return the exact bytes of a token, even if it is part of a character.

    For a special token, or another that was added to the vocabulary, the bytes are its text. An
    unknown id has no bytes.
    """
    added_token = _added_tokens(tokenizer).get(token_id)
    if added_token is not None:
        return added_token
    token = tokenizer.id_to_token(token_id)
    if token is None:
        return b""
    if isinstance(tokenizer.decoder, ByteLevel):
        return bytes(_BYTE_BY_SYMBOL[symbol] for symbol in token)
    return tokenizer.decode([token_id], skip_special_tokens=False).encode()


def _make_entry(
    token_id: int, logprob: float, tokenizer: Tokenizer, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    data = token_bytes(token_id, tokenizer)
    text = data.decode(errors="replace")
    return TokenLogprob(text, data, max(float(logprob), MIN_LOGPROB), top)


@lru_cache(8)
def _added_tokens(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Return the UTF-8 text of each added token, by id.

    Cached because the tokenizer builds this table anew in each call. Tokens are never added to a
    tokenizer in use.
    """
    return {
        token_id: token.content.encode()
        for token_id, token in tokenizer.get_added_tokens_decoder().items()
    }


def _byte_by_symbol() -> dict[str, int]:
    """Return the inverse of GPT-2's ``bytes_to_unicode``.

    Printable bytes are represented by themselves, the others by the characters from U+0100.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    table = {symbol: ord(symbol) for symbol in alphabet if ord(symbol) < 0x100}
    other_symbols = [symbol for symbol in alphabet if ord(symbol) >= 0x100]
    other_bytes = sorted(set(range(256)) - set(table.values()))
    table.update(zip(other_symbols, other_bytes, strict=True))
    return table


_BYTE_BY_SYMBOL = _byte_by_symbol()
