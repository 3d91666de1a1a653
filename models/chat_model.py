"""What families share that read a chat template with a decoder: all of the protocol but pictures
and places."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models import llama
from models.chat import ChatText, eos_ids
from models.decoder import Decoder
from models.graphs import ModelGraphs
from models.linear import Packer
from models.options import LoadOptions
from raylens.core.types import Findings
from raylens.engine.model import KVRows, ModelOutput, PrefillChunk, Prompt, TokenPolicy


class ChatModel:
    """Implements :class:`raylens.engine.model.Model` but for ``tasks``, ``prepare`` and ``encode``."""

    token_policy: TokenPolicy | None = None

    def __init__(
        self,
        model: Any,
        text_model: Any,
        tokenizer: PreTrainedTokenizerBase,
        options: LoadOptions,
        default_template: str | None = None,
    ) -> None:
        self._chat = ChatText(tokenizer, default_template)
        self._packer = Packer(options.device, options.quantize, options.consume)
        self._graphs = ModelGraphs.on(options.device, options.cuda_graphs)
        self.vocabulary = int(model.lm_head.weight.shape[0])  # before the packer takes it
        self._decoder = Decoder(
            llama.decoder_spec(text_model, model.lm_head, self._packer), self._graphs
        )
        self.tokenizer: Tokenizer = tokenizer._tokenizer
        self.device = options.device
        self.eos_ids = eos_ids(tokenizer, model.generation_config)
        self.max_length = int(model.config.text_config.max_position_embeddings)
        self.kv_shape = self._decoder.kv_shape

    def prefill(
        self, parts: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        """Implements :meth:`raylens.engine.model.Model.prefill`."""
        return self._decoder.prefill(parts, rows, tokens)

    @torch.inference_mode()
    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        """Implements :meth:`raylens.engine.model.Model.decode`."""
        return self._decoder.decode(token_ids, positions, groups)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """Implements :meth:`raylens.engine.model.Model.parse_findings` for a family that has
        nothing to tell."""
        return Findings()
