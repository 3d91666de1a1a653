"""Moondream's ``.mf`` files: checkpoints of Moondream 0.5B as ONNX graphs with int8 weights.

Source: release 0.0.6 of the package ``moondream``, whose ``moonfile.py`` has the container, and
whose ``onnx_vl.py`` and ``preprocess.py`` run its contents. What they leave open, and is assumed
here:

- The graphs keep the parameter names of Moondream's PyTorch code, as exporters do, except for the
  weights of linear layers: :mod:`models.moondream.onnx_weights` finds those by their biases.
- The vision encoder's heads have :data:`VISION_HEAD_DIM` dimensions, as Moondream 2's do, and the
  context has 2048 tokens, as the cache that the package allocates.
- The first token and the picture attend to each other in both directions, as in Moondream 2.
  ``initial_kv_cache`` holds the keys and values of the first token, which are computed here.

Those files have no reasoning, and fewer lengths of captions.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from models.moondream.config import (
    MoondreamConfig,
    RegionConfig,
    Template,
    TextConfig,
    TokenizerConfig,
    VisionConfig,
)
from models.moondream.family import FAMILY
from models.moondream.onnx_weights import OnnxGraph
from models.moondream.weights import CheckpointMismatch

MAGIC = b"MOON"
VERSION = 1
VISION_HEAD_DIM = 72
MAX_CONTEXT = 2048
_COMPONENTS = (
    ("vision.proj_mlp.", "vision_projection"),
    ("vision.", "vision_encoder"),
    ("text.wte", "text_encoder"),
    ("text.", "text_decoder"),
    ("region.coord_decoder.", "coord_decoder"),
    ("region.size_decoder.", "size_decoder"),
    ("region.coord_", "coord_encoder"),
    ("region.size_", "size_encoder"),
)
"""Beginnings of tensor names, and the graphs that hold these tensors. The first match counts."""
_BLOCK = re.compile(r"(?:^|[./])blocks[./](\d+)[./]")


@dataclass(frozen=True)
class MoonFile:
    """A checkpoint in the form of :class:`models.moondream.model.Moondream`."""

    config: MoondreamConfig
    tokenizer: Tokenizer
    graphs: Mapping[str, OnnxGraph]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its name in ``vikhyatk/moondream2``, in float32.

        Raises ``CheckpointMismatch``.
        """
        component = next(graph for prefix, graph in _COMPONENTS if name.startswith(prefix))
        return self.graphs[component].tensor(name)


def is_moonfile(checkpoint: str) -> bool:
    return checkpoint.endswith(FAMILY.file_suffixes)


def read_moonfile(path: Path) -> MoonFile:
    """Read a file, compressed by gzip if its name ends in ``.gz``.

    Raises ``CheckpointMismatch`` if it lacks something or holds something else, ``OSError`` if it
    can't be read, and ``ImportError`` without the package ``onnx``.
    """
    entries = {name.rpartition("/")[2]: content for name, content in _read_entries(path).items()}
    names = dict.fromkeys(component for _, component in _COMPONENTS)
    # Each is taken out of the entries, so that memory doesn't hold all of them twice.
    graphs = {name: OnnxGraph.parse(_take_entry(entries, f"{name}.onnx"), name) for name in names}
    cache = np.load(io.BytesIO(_take_entry(entries, "initial_kv_cache.npy")), allow_pickle=False)
    if cache.ndim != 6:
        raise CheckpointMismatch(f"initial_kv_cache: shape {list(cache.shape)}; expected 6 axes")
    _, _, _, kv_heads, _, head_dim = cache.shape
    config = MoondreamConfig(
        _text_config(graphs, kv_heads, head_dim),
        _vision_config(graphs),
        _region_config(graphs),
        _tokenizer_config(json.loads(_take_entry(entries, "config.json"))),
    )
    return MoonFile(config, Tokenizer.from_buffer(_take_entry(entries, "tokenizer.json")), graphs)


def _read_entries(path: Path) -> dict[str, bytes]:
    """Return the contents by name. Raises ``CheckpointMismatch``.

    Format: the magic bytes and a byte with the version; for each entry, the length of its name in
    4 bytes, the name, the length of its content in 8 bytes, and the content. Numbers are
    big-endian.
    """
    open_file: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            return dict(_parse_entries(file, path.name))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise CheckpointMismatch(f"{path.name}: the file is incomplete or damaged") from None


def _parse_entries(file: BinaryIO, file_name: str) -> Iterator[tuple[str, bytes]]:
    if file.read(len(MAGIC)) != MAGIC:
        raise CheckpointMismatch(f"{file_name}: not a Moondream file")
    version = file.read(1)
    if version != bytes([VERSION]):
        raise CheckpointMismatch(f"{file_name}: version {version!r}; expected {VERSION}")
    while length := file.read(4):
        name = _read_exactly(file, "!I", length).decode(errors="replace")
        yield name, _read_exactly(file, "!Q", file.read(8))


def _read_exactly(file: BinaryIO, form: str, length: bytes) -> bytes:
    """Read as many bytes as ``length`` says. Raises ``EOFError`` if there are fewer."""
    try:
        (size,) = struct.unpack(form, length)
        content = file.read(size)
    except (struct.error, OverflowError, MemoryError):
        raise EOFError from None
    if len(content) < size:
        raise EOFError
    return content


def _take_entry(entries: dict[str, bytes], name: str) -> bytes:
    if name not in entries:
        raise CheckpointMismatch(f"{name}: missing")
    return entries.pop(name)


def _text_config(graphs: Mapping[str, OnnxGraph], kv_heads: int, head_dim: int) -> TextConfig:
    decoder = graphs["text_decoder"]
    vocab_size, dim = graphs["text_encoder"].tensor("text.wte").shape
    return TextConfig(
        dim=dim,
        ff_dim=decoder.size("text.blocks.0.mlp.fc1.bias"),
        n_layers=_count_blocks(decoder),
        vocab_size=vocab_size,
        max_context=MAX_CONTEXT,
        n_heads=dim // head_dim,
        n_kv_heads=kv_heads,
    )


def _vision_config(graphs: Mapping[str, OnnxGraph]) -> VisionConfig:
    encoder = graphs["vision_encoder"]
    projection = graphs["vision_projection"]
    dim = encoder.size("vision.patch_emb.bias")
    channels = VisionConfig.in_channels
    patch = round((encoder.tensor("vision.patch_emb.weight").shape[1] / channels) ** 0.5)
    patches = encoder.tensor("vision.pos_emb").shape[1]
    return VisionConfig(
        enc_dim=dim,
        enc_patch_size=patch,
        enc_n_layers=_count_blocks(encoder),
        enc_ff_dim=encoder.size("vision.blocks.0.mlp.fc1.bias"),
        enc_n_heads=max(1, dim // VISION_HEAD_DIM),
        proj_out_dim=projection.size("vision.proj_mlp.fc2.bias"),
        crop_size=patch * round(patches**0.5),
        overlap_margin=0,
        proj_inner_dim=projection.size("vision.proj_mlp.fc1.bias"),
        halves=True,
    )


def _region_config(graphs: Mapping[str, OnnxGraph]) -> RegionConfig:
    coordinates = graphs["coord_decoder"]
    sizes = graphs["size_decoder"]
    return RegionConfig(
        dim=graphs["coord_encoder"].size("region.coord_encoder.bias"),
        coord_feat_dim=2 * graphs["coord_encoder"].tensor("region.coord_features").shape[1],
        coord_out_dim=coordinates.size("region.coord_decoder.fc2.bias"),
        size_feat_dim=2 * graphs["size_encoder"].tensor("region.size_features").shape[1],
        size_out_dim=sizes.size("region.size_decoder.fc2.bias"),
        inner_dim=coordinates.size("region.coord_decoder.fc1.bias"),
        linear_sizes=True,
    )


def _count_blocks(graph: OnnxGraph) -> int:
    return len({match[1] for name in graph.names if (match := _BLOCK.search(name))})


def _tokenizer_config(config: Mapping[str, Any]) -> TokenizerConfig:
    """Return the token ids and prompts. Raises ``CheckpointMismatch``."""
    try:
        special_tokens, templates = config["special_tokens"], config["templates"]
        query = _template(templates["query"])
        eos_id = int(special_tokens["eos"])
        return TokenizerConfig(
            bos_id=int(special_tokens.get("bos", eos_id)),
            eos_id=eos_id,
            answer_id=query.suffix[-1],
            thinking_id=None,
            caption={length: tuple(ids) for length, ids in templates["caption"].items()},
            query=query,
            detect=_template(templates["detect"]),
            point=_template(templates["point"]),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointMismatch(f"config.json: {error} is missing or malformed") from error


def _template(template: Mapping[str, Any]) -> Template:
    return Template(tuple(template["prefix"]), tuple(template["suffix"]))
