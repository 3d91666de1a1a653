"""A tokenizer for models that have learned nothing."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose token i is the byte i."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbol_by_byte = {_byte(symbol): symbol for symbol in alphabet}
    vocabulary = {symbol_by_byte[byte]: byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte(symbol: str) -> int:
    """Look up a symbol in the inverse of GPT-2's table.

    Printable bytes are represented by themselves, the others by the characters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    code = ord(symbol)
    if code < 0x100:
        return code
    return [byte for byte in range(256) if byte not in printable][code - 0x100]
