"""Plain transformers as the reference: ``generate`` with the same token ids and pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
)

from models.options import LoadOptions
from models.verify.questions import Question, normalize_text
from models.verify.reference import Answer, Comparison, Unverifiable, VerifiableModel
from raylens.engine.model import Prompt

TIES = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""If the reference's two best logits are this close, rounding decides; bfloat16 has 8 bits."""

GenerateInputs = Callable[[Any, Prompt], dict[str, Tensor]]
"""Takes our model and a prompt; returns what ``generate`` needs beside token ids."""


def load_strictly(
    checkpoint: str, options: LoadOptions, family: Callable[..., Any], inputs: GenerateInputs
) -> VerifiableModel:
    """Load a checkpoint with transformers, and build the family's model from it.

    Raises ``Unverifiable`` if tensors are missing, unexpected or of another shape.
    """
    revision = options.revision
    stock, loading = AutoModelForImageTextToText.from_pretrained(
        checkpoint, revision=revision, dtype=options.dtype, output_loading_info=True
    )
    for problem in ("missing", "unexpected", "mismatched"):
        if tensors := loading[f"{problem}_keys"]:
            names = ", ".join(map(str, tensors))
            raise Unverifiable(f"{checkpoint}: {problem} tensors: {names}")
    stock = stock.to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    image_processor = AutoImageProcessor.from_pretrained(
        checkpoint, revision=revision, backend="pil"
    )
    model = family(stock, tokenizer, image_processor, options)

    def compare(question: Question, answer: Answer) -> Comparison:
        return _compare(answer, model, stock, inputs(model, answer.sequence.prompt))

    return VerifiableModel(model, compare)


def _compare(
    answer: Answer, model: Any, stock: GenerationMixin, inputs: dict[str, Tensor]
) -> Comparison:
    """Compare token by token.

    A difference at a tie of the reference's logits does not count.
    """
    token_ids = answer.sequence.output_ids
    ids = torch.tensor([answer.sequence.prompt.token_ids], device=model.device)
    generated = stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        generation_config=_greedy(stock, len(token_ids)),
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = generated.sequences[0, ids.shape[1] :].tolist()
    text = normalize_text(model.tokenizer.decode(expected))
    for step, (ours, theirs) in enumerate(zip(token_ids, expected, strict=False)):
        if ours != theirs:
            best, second = generated.logits[step][0].float().topk(2).values
            return Comparison(text, bool(best - second < TIES.get(model.kv_spec.dtype, 0.0)))
    return Comparison(text, len(expected) == len(token_ids))


def _greedy(stock: GenerationMixin, max_tokens: int) -> GenerationConfig:
    """Return a configuration without the checkpoint's own penalties, which our answers ignore."""
    defaults = stock.generation_config
    # Fields that are not set here would be taken from the checkpoint's configuration.
    return GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=defaults.eos_token_id,
        pad_token_id=defaults.pad_token_id,
    )
