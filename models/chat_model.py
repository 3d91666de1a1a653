"""The common base of the families that combine a chat template with a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from models import llama
from models.chat import ChatText, check_prompt_length, read_eos_ids
from models.decoder import Decoder
from models.graphs import ModelGraphs
from models.linear import WeightPacker
from models.options import LoadOptions
from models.sizing import Footprint
from raylens.core.types import Completion, Findings, Message, Role, VisionRequest
from raylens.engine.model import KVRows, Model, ModelOutput, PrefillChunk, Prompt, TokenPolicy

M = TypeVar("M", bound="ChatModel")


def load_pretrained(
    make: Callable[[Any, PreTrainedTokenizerBase, Any, LoadOptions], M],
    weights_type: Any,
    checkpoint: str,
    options: LoadOptions,
) -> M:
    """Load a checkpoint by its hub id or from a folder. Raises ``OSError`` if there is none.

    ``make`` builds the model from transformers' weights, tokenizer and image processor;
    ``weights_type`` is transformers' class of the weights.
    """
    revision = options.revision
    weights = weights_type.from_pretrained(checkpoint, revision=revision, dtype=options.dtype)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    image_processor = AutoImageProcessor.from_pretrained(
        checkpoint, revision=revision, backend="pil"
    )
    return make(weights.eval(), tokenizer, image_processor, replace(options, free_modules=True))


def read_footprint(checkpoint: str, revision: str | None) -> Footprint:
    """Read a checkpoint's footprint. Raises ``OSError`` if there is no such checkpoint."""
    config = AutoConfig.from_pretrained(checkpoint, revision=revision)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Footprint(parameters, 2 * math.prod(llama.kv_shape(config.get_text_config())))


class ChatModel(Model):
    """A model without its vision part; a family adds ``tasks``, ``prepare`` and ``encode``."""

    token_policy: TokenPolicy | None = None
    _placeholders: tuple[str, ...]
    """Tokens that stand for pictures in rendered text."""

    def __init__(
        self,
        model: Any,
        text_model: Any,
        tokenizer: PreTrainedTokenizerBase,
        options: LoadOptions,
        default_template: str | None = None,
    ) -> None:
        self._chat = ChatText(tokenizer, default_template)
        opening = self._chat.render([Message(Role.USER, ())])
        self._answers_begin_with_space = not opening[-1:].isspace()
        self._packer = WeightPacker(options.device, options.quantize, options.free_modules)
        self._graphs = ModelGraphs.create(options.device, options.cuda_graphs)
        # Both before the packer empties the modules. Tied weights count once.
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.vocab_size = int(model.lm_head.weight.shape[0])
        self._decoder = Decoder(
            llama.decoder_spec(text_model, model.lm_head, self._packer), self._graphs
        )
        self.tokenizer: Tokenizer = tokenizer._tokenizer
        self.device = options.device
        self.eos_ids = read_eos_ids(tokenizer, model.generation_config)
        self.max_length = int(model.config.text_config.max_position_embeddings)
        self.kv_spec = self._decoder.kv_spec

    def _completion_prompt(self, task: Completion) -> Prompt:
        """Return the prompt of a text to continue. Raises ``InvalidRequest`` if it is too long."""
        token_ids = self._chat.encode_completion(task.text, self._placeholders)
        check_prompt_length(task, len(token_ids), self.max_length)
        return Prompt(tuple(token_ids), continues_answer=True)

    def _chat_prompt(
        self, request: VisionRequest, messages: Sequence[Message], prompt: Prompt
    ) -> Prompt:
        """Return the prompt with what the engine has to know about the answer's text."""
        continues = messages[-1].is_unfinished_answer
        return replace(
            prompt,
            continues_answer=continues,
            leading_space=self._answers_begin_with_space and not continues,
            tool_call_style=self._chat.tool_call_style(request.tools),
        )

    def prefill(
        self,
        chunks: Sequence[PrefillChunk],
        get_rows: Callable[[], Sequence[KVRows]],
        max_slice_tokens: int,
    ) -> Generator[None, None, ModelOutput]:
        return self._decoder.prefill(chunks, get_rows, max_slice_tokens)

    @torch.inference_mode()
    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        return self._decoder.decode(token_ids, positions, rows_by_arena)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """Return no findings, for families whose answers are text only."""
        return Findings()
