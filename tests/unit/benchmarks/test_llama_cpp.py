"""The comparison with llama.cpp at its tiny scale, with programs that answer as llama.cpp's do."""

from __future__ import annotations

import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor

from benchmarks.engine.checkpoint import build
from benchmarks.llama_cpp.__main__ import main
from benchmarks.llama_cpp.gguf import interleave_pairs, llama_tensors, write_gguf

QUANTIZE = """
import shutil, sys
source, target, kind = sys.argv[-3:]
assert kind in ("Q8_0", "Q4_0")
shutil.copy(source, target)
"""
BATCHED_BENCH = """
import json, sys
from pathlib import Path
options = dict(zip(sys.argv[1:-1], sys.argv[2:]))
assert Path(options["-m"]).read_bytes().startswith(b"GGUF")
print("some line of the log")
for tokens in options["-npp"].split(","):
    steps = int(options["-ntg"])
    print(json.dumps({{"pp": int(tokens), "t_pp": {prompt_s}, "t_tg": steps * {step_s}}}))
"""
FIELDS = {4: "<I", 6: "<f"}


def install(folder: Path, name: str, code: str) -> None:
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{code}")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)


def install_programs(folder: Path, step_s: float, prompt_s: float) -> None:
    install(folder, "llama-quantize", QUANTIZE)
    bench = BATCHED_BENCH.format(step_s=step_s, prompt_s=prompt_s)
    install(folder, "llama-batched-bench", bench)


def compare(folder: Path) -> int:
    arguments = ["--scale=tiny", "--rounds=1", "--threads=1", f"--programs={folder}"]
    return main([*arguments, "--precisions", "bfloat16", "int8", "--rows", "1", "2"])


def test_every_target_is_met_beside_a_slow_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_programs(tmp_path, step_s=1000.0, prompt_s=5000.0)
    assert compare(tmp_path) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": ok |")]
    assert [row.split(" | ")[:2] for row in rows] == [
        [f"| {workload}", precision]
        for precision in ("bfloat16, BF16", "int8, Q8_0")
        for workload in (
            "decode step, 1 row",
            "decode step, 2 rows",
            "prompt of 150 tokens",
            "prompt of 750 tokens",
        )
    ]
    assert [float(row.split(" | ")[3]) for row in rows] == [1e6, 1e6, 5e6, 5e6] * 2


def test_a_slower_step_than_llama_cpps_misses_its_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_programs(tmp_path, step_s=1e-9, prompt_s=5000.0)
    assert compare(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("(≥ 1.3): **miss**" in line for line in lines) == 2
    assert sum("(≥ 1): **miss**" in line for line in lines) == 2
    assert sum("(≥ 1): ok" in line for line in lines) == 4


def test_a_program_that_fails_ends_the_comparison_with_its_message(tmp_path: Path) -> None:
    install(tmp_path, "llama-quantize", "import sys; sys.exit('no such type')")
    with pytest.raises(RuntimeError, match="no such type"):
        compare(tmp_path)


def read_string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    return file.read(size).decode()


def read_field(file: BinaryIO) -> tuple[str, str | int | float]:
    key = read_string(file)
    (kind,) = struct.unpack("<I", file.read(4))
    if kind == 8:
        return key, read_string(file)
    (value,) = struct.unpack(FIELDS[kind], file.read(4))
    return key, value


def read_tensor_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """Return a tensor's name, shape as torch has it, type and offset."""
    name = read_string(file)
    (dimensions,) = struct.unpack("<I", file.read(4))
    shape = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
    kind, offset = struct.unpack("<IQ", file.read(12))
    return name, shape[::-1], kind, offset


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    dtypes = {0: torch.float32, 30: torch.bfloat16}
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
        version, num_tensors, num_fields = struct.unpack("<IQQ", file.read(20))
        assert version == 3
        fields = dict(read_field(file) for _ in range(num_fields))
        assert fields["general.architecture"] == "llama"
        infos = [read_tensor_info(file) for _ in range(num_tensors)]
        start = (file.tell() + 31) // 32 * 32
    data = bytearray(path.read_bytes())
    for name, shape, kind, offset in infos:
        assert offset % 32 == 0
        count = torch.Size(shape).numel()
        values = torch.frombuffer(data, dtype=dtypes[kind], count=count, offset=start + offset)
        yield name, values.view(shape)


def test_a_file_has_the_models_weights(tmp_path: Path) -> None:
    model = build("smolvlm", "tiny", torch.bfloat16, "cpu").model
    text_model = model.model.text_model
    path = tmp_path / "weights.gguf"
    write_gguf(path, text_model, model.lm_head)
    expected = dict(llama_tensors(text_model, model.lm_head))
    read = dict(read_tensors(path))
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    parameters = sum(parameter.numel() for parameter in text_model.parameters())
    assert sum(map(Tensor.numel, read.values())) == parameters + model.lm_head.weight.numel()


def test_outputs_that_are_rotated_together_become_neighbors() -> None:
    # Two heads of four outputs and one input, whose weight is the output's number.
    weight = torch.arange(8.0)[:, None]
    assert interleave_pairs(weight, 4).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
