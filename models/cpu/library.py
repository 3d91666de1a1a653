"""The compiled library: its structures and functions, through ctypes, which releases the GIL."""

from __future__ import annotations

import ctypes
import logging
import os
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Protocol

from models.cpu.build import BuildError, best_library

logger = logging.getLogger(__name__)

SWITCH = "RAYLENS_CPU_KERNELS"
"""Environment variable: ``torch`` leaves all arithmetic to torch."""

FORM_F32, FORM_BF16, FORM_INT8, FORM_INT4 = range(4)
ACTIVATIONS = ("none", "gelu")
INPUT_STEP = 64
LANES = 16
MAX_HEAD_DIM = 256


class LinearStruct(Structure):
    """``Linear`` in ``native/linear.h``."""

    _fields_ = (
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("sums", c_void_p),
        ("bias", c_void_p),
        ("form", c_int32),
        ("activation", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("group", c_int32),
        ("unused", c_int32),
    )


class NormStruct(Structure):
    """``Norm`` in ``native/decode.h``, as are all below."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", c_float), ("size", c_int32))


class LayerStruct(Structure):
    _fields_ = (
        ("attention_norm", NormStruct),
        ("mlp_norm", NormStruct),
        ("qkv", LinearStruct),
        ("out", LinearStruct),
        ("up", LinearStruct),
        ("down", LinearStruct),
        ("gated", c_int32),
        ("unused", c_int32),
    )


class ModelStruct(Structure):
    _fields_ = (
        ("layers", POINTER(LayerStruct)),
        ("norm", NormStruct),
        ("head", LinearStruct),
        ("num_layers", c_int32),
        ("hidden", c_int32),
        ("query_heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("kv_is_bf16", c_int32),
    )


class ArenaStruct(Structure):
    _fields_ = (
        ("keys", POINTER(c_void_p)),
        ("values", POINTER(c_void_p)),
        ("row_bytes", c_int64),
        ("head_bytes", c_int64),
    )


class RowStruct(Structure):
    _fields_ = (("arena", c_int32), ("index", c_int32), ("length", c_int64))


class StepStruct(Structure):
    _fields_ = (
        ("model", POINTER(ModelStruct)),
        ("arenas", POINTER(ArenaStruct)),
        ("rows", POINTER(RowStruct)),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("states", c_void_p),
        ("logits", c_void_p),
        ("scratch", c_void_p),
        ("num_rows", c_int32),
        ("threads", c_int32),
    )


class SequenceStruct(Structure):
    """``Sequence`` in ``native/prompt_attention.h``."""

    _fields_ = (
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("target", c_void_p),
        ("limits", c_void_p),
        ("query_stride", c_int64),
        ("query_head_stride", c_int64),
        ("key_stride", c_int64),
        ("key_head_stride", c_int64),
        ("value_stride", c_int64),
        ("value_head_stride", c_int64),
        ("num_queries", c_int32),
        ("num_keys", c_int32),
    )


class AttentionStruct(Structure):
    """``Attention`` in the same file."""

    _fields_ = (
        ("sequences", POINTER(SequenceStruct)),
        ("scratch", c_void_p),
        ("num_sequences", c_int32),
        ("query_heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("is_bf16", c_int32),
        ("threads", c_int32),
    )


class Library(Protocol):
    """The exported functions, in ``native/pack.c``, ``linear.c``, ``decode.c`` and
    ``prompt_attention.c``."""

    def linear_pack(self, layer: object, weight: int, is_bf16: bool, threads: int) -> None: ...
    def linear_scratch_bytes(self, layer: object, rows: int) -> int: ...
    def linear_run(
        self,
        layer: object,
        states: int,
        residual: int | None,
        target: int,
        rows: int,
        is_bf16: bool,
        scratch: int,
        threads: int,
    ) -> None: ...
    def decode_scratch_bytes(self, model: object, rows: int, length: int, threads: int) -> int: ...
    def decode_run(self, step: object) -> None: ...
    def attention_scratch_bytes(self, attention: object) -> int: ...
    def attention_run(self, attention: object) -> None: ...


def open_library(path: Path) -> Library:
    """Load a compiled library. Raises ``OSError``.

    Loaded after torch, it uses torch's OpenMP threads.
    """
    library = ctypes.CDLL(str(path))
    layer, model = POINTER(LinearStruct), POINTER(ModelStruct)
    pointers = (c_void_p, c_void_p, c_void_p)
    library.linear_pack.argtypes = (layer, c_void_p, c_int, c_int)
    library.linear_pack.restype = None
    library.linear_scratch_bytes.argtypes = (layer, c_int)
    library.linear_scratch_bytes.restype = c_size_t
    library.linear_run.argtypes = (layer, *pointers, c_int, c_int, c_void_p, c_int)
    library.linear_run.restype = None
    library.decode_scratch_bytes.argtypes = (model, c_int, c_int64, c_int)
    library.decode_scratch_bytes.restype = c_size_t
    library.decode_run.argtypes = (POINTER(StepStruct),)
    library.decode_run.restype = None
    library.attention_scratch_bytes.argtypes = (POINTER(AttentionStruct),)
    library.attention_scratch_bytes.restype = c_size_t
    library.attention_run.argtypes = (POINTER(AttentionStruct),)
    library.attention_run.restype = None
    return library


@cache
def host_library() -> Library | None:
    """Return the library for the best instruction set of this CPU, compiled at the first call.

    Returns None, and logs why, if it can't be compiled or is switched off.
    """
    if os.environ.get(SWITCH) == "torch":
        logger.info("%s=torch: the CPU kernels are off", SWITCH)
        return None
    try:
        path = best_library()
        library = open_library(path)
    except (BuildError, OSError) as error:
        logger.warning("models run on torch alone, without the faster CPU kernels: %s", error)
        return None
    logger.info("CPU kernels: %s", path.stem)
    return library
