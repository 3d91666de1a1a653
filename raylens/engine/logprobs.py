"""How likely a token was, and what could have stood in its place."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import Tensor

from raylens.types import TokenLogprob

LEAST = -9999.0
"""Stands for -inf, which JSON has no word for; OpenAI's and vLLM's servers say the same."""


def logprobs_of(logits: Tensor, token_id: int, count: int, tokenizer: Tokenizer) -> TokenLogprob:
    """A token's logprob, with those of the ``count`` most likely tokens (the chosen one may be among them).

    ``logits``, (vocabulary,) of any type and on any device, are the model's own, before masks, penalties and
    temperature, as in vLLM (``logprobs_mode="raw_logprobs"``).
    """
    row = logits.float().cpu().numpy()  # numpy, for the reason in sampling.py
    best = row.max()
    norm = best + np.log(np.exp(row.astype(np.float64) - best).sum())
    count = min(count, len(row))
    ids = row.argpartition(-count)[-count:] if count else np.empty(0, dtype=np.int64)
    ids = ids[(-row[ids]).argsort(kind="stable")]
    top = tuple(_told(int(i), row[i] - norm, tokenizer) for i in ids)
    return _told(token_id, row[token_id] - norm, tokenizer, top)


def token_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """The exact bytes of a token, also where it is a part of a character; empty for an id that has none.

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


def _told(token_id: int, logprob: float, tokenizer: Tokenizer, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    data = token_bytes(token_id, tokenizer)
    return TokenLogprob(data.decode(errors="replace"), data, max(float(logprob), LEAST), top)


@lru_cache(8)
def _added(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Asking the tokenizer each time would build the whole table; a tokenizer that is in use is not added to."""
    return {token_id: token.content.encode() for token_id, token in tokenizer.get_added_tokens_decoder().items()}


def _table() -> dict[str, int]:
    """GPT-2's ``bytes_to_unicode`` backwards: printable bytes stand for themselves, the others from U+0100 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = {symbol: ord(symbol) for symbol in alphabet if ord(symbol) < 0x100}
    others = sorted(set(range(256)) - set(plain.values()))
    return plain | dict(zip((symbol for symbol in alphabet if ord(symbol) >= 0x100), others, strict=True))


_BYTES = _table()
