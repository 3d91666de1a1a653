"""Start of a training from the weights of an earlier checkpoint.

Its vocabulary may be another one. A token that is new begins as its counterpart with a space before
it, or else as the mean of the tokens that spelled it before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast


def copy_weights(
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    source_tokenizer: Tokenizer,
) -> None:
    """Copy the weights of ``source`` into ``target``, by name.

    A tensor whose first dimension is the size of the vocabulary is copied row by row. Raises
    ``ValueError`` if any other shape differs.
    """
    new_size, old_size = len(tokenizer), source_tokenizer.get_vocab_size()
    rows = [
        _source_ids(token, tokenizer, source_tokenizer)
        for token in tokenizer.convert_ids_to_tokens(range(new_size))
    ]
    with torch.no_grad():
        for name, tensor in target.items():
            weights = source[name].to(tensor)
            if len(tensor) == new_size and len(weights) == old_size:
                weights = torch.stack([weights[ids].mean(0) for ids in rows])
            if weights.shape != tensor.shape:
                raise ValueError(f"{name}: {tuple(weights.shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(weights)


def _source_ids(
    token: str, tokenizer: PreTrainedTokenizerFast, source_tokenizer: Tokenizer
) -> list[int]:
    """Return the ids in the earlier vocabulary whose mean a token starts from."""
    for known in (token, f"Ġ{token}"):
        token_id = source_tokenizer.token_to_id(known)
        if token_id is not None:
            return [token_id]
    text = tokenizer.convert_tokens_to_string([token])
    ids: list[int] = source_tokenizer.encode(text, add_special_tokens=False).ids
    return ids
