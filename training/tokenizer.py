"""A small byte-level BPE tokenizer like SmolLM2's, with the scenes' words as whole tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.prompts import vocabulary_corpus

WORDS_AND_DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)


def build_tokenizer(
    special_tokens: list[str],
    vocab_size: int,
    pre_tokenizer: pre_tokenizers.PreTokenizer = WORDS_AND_DIGITS,
    corpus: Iterable[str] = (),
    **kwargs: str,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose first ids are ``special_tokens``.

    It encodes any text, byte by byte if necessary. ``pre_tokenizer`` splits text into pieces that
    no token crosses. ``corpus`` is added to the text that all pocket models share. ``kwargs`` go
    to ``PreTrainedTokenizerFast`` (bos_token, eos_token, chat_template, …).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*vocabulary_corpus(), *corpus], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **kwargs,
    )
