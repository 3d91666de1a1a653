"""A whole decode step in one call of C."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_void_p, cast
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.cpu.library import (
    MAX_HEAD_DIM,
    ArenaStruct,
    LayerStruct,
    ModelStruct,
    NormStruct,
    RowStruct,
    StepStruct,
)
from models.cpu.linear import NativeLinear
from models.linear import Linear
from models.norms import RMSNorm
from raylens.engine.model import KVRows, KVSpec

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerParts:
    """The parts of a layer of the forms that a native step computes.

    Norm, attention, norm, MLP; or, without ``mlp_norm``, attention and MLP in parallel on the
    output of one norm. ``up`` includes its GELU, unless the layer is ``gated``: then it returns
    gates and values of a SwiGLU.
    """

    attention_norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm | None
    up: Linear
    down: Linear
    gated: bool


class NativeDecodeStep:
    """Runs decode steps of one text model. Not thread-safe."""

    def __init__(
        self,
        layers: Sequence[LayerParts],
        norm: Norm,
        head: NativeLinear,
        num_query_heads: int,
        kv_spec: KVSpec,
    ) -> None:
        self._library = head.library
        self._linears = [
            head,
            *(linear for one in layers for linear in (one.qkv, one.out, one.up, one.down)),
        ]
        """Kept, because the structures point into them."""
        self._tensors: list[Tensor] = []
        """The norms' weights, which the structures point to."""
        layer_structs = (LayerStruct * len(layers))(*map(self._layer, layers))
        self._model = ModelStruct(
            layers=layer_structs,
            norm=self._norm(norm),
            head=head.struct,
            num_layers=len(layers),
            hidden=head.struct.inputs,
            query_heads=num_query_heads,
            kv_heads=kv_spec.num_kv_heads,
            head_dim=kv_spec.head_dim,
            kv_is_bf16=kv_spec.dtype is torch.bfloat16,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @classmethod
    def create(
        cls,
        layers: Sequence[LayerParts] | None,
        norm: Norm,
        head: Linear,
        num_query_heads: int,
        kv_spec: KVSpec,
    ) -> NativeDecodeStep | None:
        """Return a step; None unless all parts are native ones."""
        if layers is None or not isinstance(head, NativeLinear):
            return None
        linears = [linear for one in layers for linear in (one.qkv, one.out, one.up, one.down)]
        norms = [norm, *(one.attention_norm for one in layers), *(one.mlp_norm for one in layers)]
        is_native = (
            all(isinstance(linear, NativeLinear) for linear in linears)
            and all(isinstance(one, RMSNorm | nn.LayerNorm | None) for one in norms)
            and kv_spec.dtype in (torch.float32, torch.bfloat16)
            and kv_spec.head_dim <= MAX_HEAD_DIM
        )
        return cls(layers, norm, head, num_query_heads, kv_spec) if is_native else None

    def run(
        self, states: Tensor, cos: Tensor, sin: Tensor, rows_by_arena: Sequence[KVRows]
    ) -> tuple[Tensor, Tensor]:
        """Run a step on embedded tokens (rows, hidden).

        ``cos`` and ``sin`` are those of the rows' positions, float32 (rows, head_dim / 2). Writes
        keys and values as :meth:`raylens.engine.model.Model.decode` does. Returns the logits,
        float32 (rows, vocabulary), and the last layer's output, float32 (rows, hidden). Raises
        ``IndexError`` if a row is full.
        """
        _check_room(rows_by_arena)
        states = states.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        num_rows = len(states)
        logits = torch.empty(num_rows, self._model.head.outputs)
        arenas = [_Arena(kv_rows) for kv_rows in rows_by_arena]
        rows = [
            RowStruct(arena, index, length)
            for arena, kv_rows in enumerate(rows_by_arena)
            for index, length in enumerate(kv_rows.lengths)
        ]
        threads = torch.get_num_threads()
        step = StepStruct(
            model=ctypes.pointer(self._model),
            arenas=(ArenaStruct * len(arenas))(*(arena.struct for arena in arenas)),
            rows=(RowStruct * num_rows)(*rows),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            states=states.data_ptr(),
            logits=logits.data_ptr(),
            scratch=self._scratch_for(rows, threads).data_ptr(),
            num_rows=num_rows,
            threads=threads,
        )
        self._library.decode_run(byref(step))
        return logits, states

    def _scratch_for(self, rows: Sequence[RowStruct], threads: int) -> Tensor:
        length = max(row.length for row in rows)
        size = self._library.decode_scratch_bytes(byref(self._model), len(rows), length, threads)
        if len(self._scratch) < size:
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return self._scratch

    def _layer(self, layer: LayerParts) -> LayerStruct:
        linears = {name: getattr(layer, name).struct for name in ("qkv", "out", "up", "down")}
        return LayerStruct(
            attention_norm=self._norm(layer.attention_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            gated=layer.gated,
            **linears,
        )

    def _norm(self, norm: Norm | None) -> NormStruct:
        """Return a norm's structure, all zeros for None."""
        if not isinstance(norm, RMSNorm | nn.LayerNorm):
            return NormStruct()
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        return NormStruct(
            weight=self._keep(norm.weight),
            bias=None if bias is None else self._keep(bias),
            eps=norm.eps,
            size=norm.weight.numel(),
        )

    def _keep(self, tensor: Tensor) -> int:
        self._tensors.append(tensor.detach().float().contiguous())
        return self._tensors[-1].data_ptr()


class _Arena:
    """An arena's structure, and the arrays that it points to."""

    def __init__(self, kv_rows: KVRows) -> None:
        # A resize that ran out of memory can leave some layers with more rows.
        keys = [layer.data_ptr() for layer in kv_rows.layer_kv]
        values = [layer.data_ptr() + _stride_bytes(layer, 0) for layer in kv_rows.layer_kv]
        pointers = c_void_p * len(keys)
        self.struct = ArenaStruct(
            keys=cast(pointers(*keys), POINTER(c_void_p)),
            values=cast(pointers(*values), POINTER(c_void_p)),
            row_bytes=_stride_bytes(kv_rows.layer_kv[0], 1),
            head_bytes=_stride_bytes(kv_rows.layer_kv[0], 2),
        )


def _stride_bytes(layer: Tensor, dimension: int) -> int:
    return layer.stride(dimension) * layer.itemsize


def _check_room(rows_by_arena: Sequence[KVRows]) -> None:
    for kv_rows in rows_by_arena:
        capacity = kv_rows.layer_kv[0].shape[3]
        if max(kv_rows.lengths) >= capacity:
            raise IndexError(f"a row of {capacity} tokens is full")
