"""The kernels of another kind of CPU: cross-compiled, and run by qemu, a process for each call.

On Debian: ``apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user``.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Iterator
from ctypes import Structure, sizeof, string_at
from pathlib import Path
from typing import Any

from models.cpu.build import FLAGS, SOURCES
from models.cpu.library import FORM_INT4, FORM_INT8, INPUT_STEP, LANES

COMPILER = "aarch64-linux-gnu-gcc"
EMULATOR = "qemu-aarch64"
_RUNNER = Path(__file__).with_name("emulated.c")
_LINEAR, _DECODE, _ATTENTION, _PACK = range(4)
_WEIGHT_BITS = (32, 16, 8, 4)
"""Bits of a weight in each form."""


def compile_runner(flags: tuple[str, ...], target: Path) -> None:
    """Compile a program that runs one call."""
    kept = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    sources = map(str, (_RUNNER, *sorted(SOURCES.glob("*.c"))))
    command = [COMPILER, *kept, *flags, "-static", f"-I{SOURCES}", *sources, "-o", str(target)]
    subprocess.run([*command, "-lm"], check=True, timeout=300)


class EmulatedLibrary:
    """A :class:`models.cpu.library.Library`."""

    def __init__(self, runner: Path) -> None:
        self._runner = runner

    def linear_pack(self, layer: Any, weight: int, is_bf16: bool, threads: int) -> None:
        linear = layer._obj
        targets = list(_packed_arrays(linear))
        written = self._call(
            struct.pack("i", _PACK),
            *_linear(linear),
            struct.pack("ii", is_bf16, threads),
            *(struct.pack("q", size) for _, size in targets),
            _array(weight, linear.outputs * linear.inputs * (2 if is_bf16 else 4)),
        )
        start = 0
        for address, size in targets:
            ctypes.memmove(address or 0, written[start : start + size], size)
            start += size

    def linear_scratch_bytes(self, layer: Any, rows: int) -> int:
        return 0

    def decode_scratch_bytes(self, model: Any, rows: int, length: int, threads: int) -> int:
        return 0

    def linear_run(
        self,
        layer: Any,
        states: int,
        residual: int | None,
        target: int,
        rows: int,
        is_bf16: bool,
        scratch: int,
        threads: int,
    ) -> None:
        linear = layer._obj
        row_bytes = rows * (2 if is_bf16 else 4)
        written = self._call(
            struct.pack("i", _LINEAR),
            *_linear(linear),
            struct.pack("iii", rows, is_bf16, threads),
            _array(states, row_bytes * linear.inputs),
            _array(residual, row_bytes * linear.outputs),
        )
        ctypes.memmove(target, written, len(written))

    def decode_run(self, step: Any) -> None:
        call = step._obj
        model = call.model.contents
        rows = call.rows[: call.num_rows]
        halves = call.num_rows * model.head_dim // 2 * 4
        arenas = list(_arenas(call, rows))
        state_bytes = call.num_rows * model.hidden * 4
        written = self._call(
            struct.pack("i", _DECODE),
            *_model(model),
            struct.pack("i", len(arenas)),
            *(part for arena, row_count in arenas for part in _arena(arena, row_count, model)),
            struct.pack("ii", call.num_rows, call.threads),
            _array(ctypes.addressof(call.rows.contents), sizeof(call.rows.contents) * len(rows)),
            *(_array(address, halves) for address in (call.cos, call.sin)),
            _array(call.states, state_bytes),
        )
        targets = [
            (call.logits, call.num_rows * model.head.outputs * 4),
            (call.states, state_bytes),
        ]
        for arena, row_count in arenas:
            size = arena.row_bytes * row_count
            for addresses in (arena.keys, arena.values):
                targets += [(address, size) for address in addresses[: model.num_layers]]
        start = 0
        for address, size in targets:
            ctypes.memmove(address, written[start : start + size], size)
            start += size

    def attention_scratch_bytes(self, attention: Any) -> int:
        return 0

    def attention_run(self, attention: Any) -> None:
        call = attention._obj
        sequences = call.sequences[: call.num_sequences]
        written = self._call(
            struct.pack("i", _ATTENTION),
            bytes(call),
            *(part for sequence in sequences for part in _sequence(sequence, call)),
        )
        start = 0
        for sequence in sequences:
            size = sequence.num_queries * call.query_heads * call.head_dim * _value_bytes(call)
            ctypes.memmove(sequence.target, written[start : start + size], size)
            start += size

    def _call(self, *parts: bytes) -> bytes:
        result = subprocess.run(
            [EMULATOR, str(self._runner)],
            input=b"".join(parts),
            stdout=subprocess.PIPE,
            check=True,
            timeout=120,
        )
        return result.stdout


def _array(address: int | None, size: int) -> bytes:
    """Return an array with its size before it; none for no address."""
    return struct.pack("q", size) + string_at(address, size) if address else struct.pack("q", 0)


def _packed_arrays(linear: Any) -> Iterator[tuple[int | None, int]]:
    """Yield the address and the bytes of the weights, scales and sums."""
    panels = -(-linear.outputs // LANES)
    inputs = -(-linear.inputs // INPUT_STEP) * INPUT_STEP
    scales = {FORM_INT8: 4, FORM_INT4: 2 * inputs // (linear.group or 1)}.get(linear.form, 0)
    yield linear.weights, panels * LANES * inputs * _WEIGHT_BITS[linear.form] // 8
    yield linear.scales, panels * LANES * scales
    yield linear.sums, panels * LANES * 4 if linear.sums else 0


def _linear(linear: Any) -> list[bytes]:
    return [
        bytes(linear),
        *(_array(address, size) for address, size in _packed_arrays(linear)),
        _array(linear.bias, linear.outputs * 4),
    ]


def _norm(norm: Any) -> list[bytes]:
    return [bytes(norm), _array(norm.weight, norm.size * 4), _array(norm.bias, norm.size * 4)]


def _model(model: Any) -> Iterator[bytes]:
    yield bytes(model)
    for layer in model.layers[: model.num_layers]:
        yield struct.pack("i", layer.gated)
        yield from _norm(layer.attention_norm)
        yield from _norm(layer.mlp_norm)
        for linear in (layer.qkv, layer.out, layer.up, layer.down):
            yield from _linear(linear)
    yield from _norm(model.norm)
    yield from _linear(model.head)


def _arenas(call: Any, rows: list[Any]) -> Iterator[tuple[Structure, int]]:
    """Yield each arena with the number of its rows in use."""
    for index in range(max(row.arena for row in rows) + 1):
        yield call.arenas[index], 1 + max(row.index for row in rows if row.arena == index)


def _arena(arena: Any, row_count: int, model: Any) -> Iterator[bytes]:
    yield struct.pack("qq", arena.row_bytes, arena.head_bytes)
    for addresses in (arena.keys, arena.values):
        for address in addresses[: model.num_layers]:
            yield _array(address, arena.row_bytes * row_count)


def _value_bytes(attention: Any) -> int:
    return 2 if attention.is_bf16 else 4


def _sequence(sequence: Any, attention: Any) -> Iterator[bytes]:
    yield bytes(sequence)
    dim, value_bytes = attention.head_dim, _value_bytes(attention)
    queries = (sequence.num_queries - 1) * sequence.query_stride
    queries += (attention.query_heads - 1) * sequence.query_head_stride + dim
    keys = (sequence.num_keys - 1) * sequence.key_stride
    keys += (attention.kv_heads - 1) * sequence.key_head_stride + dim
    values = (sequence.num_keys - 1) * sequence.value_stride
    values += (attention.kv_heads - 1) * sequence.value_head_stride + dim
    yield _array(sequence.queries, queries * value_bytes)
    yield _array(sequence.keys, keys * value_bytes)
    yield _array(sequence.values, values * value_bytes)
    yield _array(sequence.limits, sequence.num_queries * 4)
