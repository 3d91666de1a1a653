"""Print the table of :mod:`benchmarks.llama_cpp`; exit with status 0 if every target is met."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch

import benchmarks.llama_cpp
from benchmarks.engine.checkpoint import Checkpoint
from benchmarks.engine.checkpoint import build as build_checkpoint
from benchmarks.engine.limits import measure_read_rate, run_in_thread
from benchmarks.engine.report import Check
from benchmarks.llama_cpp.build import QUANTIZE, build, default_folder, run_program
from benchmarks.llama_cpp.gguf import write_gguf
from benchmarks.llama_cpp.measure import Decode, LlamaCpp, Prefill, Raylens, System, Workload
from models.linear import Quantize
from models.options import LoadOptions

HEADER = (
    "| workload | precision | raylens, ms | llama.cpp, ms | times as fast |\n"
    "| --- | --- | --- | --- | --- |"
)
PRECISIONS: dict[str, tuple[Quantize | None, str]] = {
    "bfloat16": (None, "BF16"),
    "int8": ("int8", "Q8_0"),
    "int4": ("int4", "Q4_0"),
}
"""raylens's ``quantize`` and llama.cpp's type of weights, by precision."""
ALONE, AHEAD = 1.3, 1.0
"""Targets: times as fast as llama.cpp, in a decode step of one row and in everything else."""
QUANTIZE_TIMEOUT_S = 600


@dataclass(frozen=True)
class Comparison:
    """One workload in one precision, and its seconds in each round."""

    workload: Workload
    precision: str
    raylens: System
    llama_cpp: System
    raylens_s: list[float] = field(default_factory=list)
    llama_cpp_s: list[float] = field(default_factory=list)

    def measure(self, raylens_first: bool) -> None:
        systems = [(self.raylens, self.raylens_s), (self.llama_cpp, self.llama_cpp_s)]
        for system, seconds in systems if raylens_first else reversed(systems):
            seconds.append(system.measure(self.workload))

    @property
    def last_round(self) -> str:
        ours, theirs = 1e3 * self.raylens_s[-1], 1e3 * self.llama_cpp_s[-1]
        return f"{self.workload}, {self.precision}: {ours:.1f} and {theirs:.1f} ms"

    @property
    def check(self) -> Check:
        pairs = zip(self.raylens_s, self.llama_cpp_s, strict=True)
        target = ALONE if self.workload == Decode(1) else AHEAD
        return Check("llama.cpp", median(theirs / ours for ours, theirs in pairs), target)

    def __str__(self) -> str:
        name = f"{self.precision}, {PRECISIONS[self.precision][1]}"
        ours, theirs = 1e3 * median(self.raylens_s), 1e3 * median(self.llama_cpp_s)
        return f"| {self.workload} | {name} | {ours:.1f} | {theirs:.1f} | {self.check} |"


def write_weights(
    checkpoint: Checkpoint, precisions: Sequence[str], programs: Path, folder: Path
) -> dict[str, Path]:
    """Write the text model in these precisions; return the files by precision.

    The head has 8 bits in both quantized files, as it has in raylens.
    """
    original = folder / "BF16.gguf"
    write_gguf(original, checkpoint.model.model.text_model, checkpoint.model.lm_head)
    files = {}
    for precision in precisions:
        kind = PRECISIONS[precision][1]
        files[precision] = folder / f"{kind}.gguf"
        if files[precision] != original:
            command = [str(programs / QUANTIZE), "--output-tensor-type", "q8_0"]
            command += [str(original), str(files[precision]), kind]
            run_program(command, QUANTIZE_TIMEOUT_S)
    return files


def make_comparisons(
    args: argparse.Namespace, checkpoint: Checkpoint, programs: Path, folder: Path
) -> list[Comparison]:
    files = write_weights(checkpoint, args.precisions, programs, folder)
    workloads: list[Workload] = [*map(Decode, args.rows), *map(Prefill, args.prompts)]
    comparisons = []
    for precision in args.precisions:
        options = LoadOptions(dtype=torch.bfloat16, quantize=PRECISIONS[precision][0])
        raylens = Raylens(checkpoint.load(options), args.threads)
        llama_cpp = LlamaCpp(programs, files[precision], args.threads)
        comparisons += [
            Comparison(workload, precision, raylens, llama_cpp) for workload in workloads
        ]
    return comparisons


def run(args: argparse.Namespace, programs: Path, folder: Path) -> list[Comparison]:
    """Run all rounds and print the table."""
    checkpoint = build_checkpoint("smolvlm", args.scale, torch.bfloat16, "cpu")
    comparisons = make_comparisons(args, checkpoint, programs, folder)
    measure_bandwidth = partial(run_in_thread, partial(measure_read_rate, "cpu"), args.threads)
    bandwidths = []
    for number in range(args.rounds):
        bandwidths.append(measure_bandwidth())
        print(f"round {number + 1}: {bandwidths[-1]:.1f} GB/s", file=sys.stderr, flush=True)
        for comparison in comparisons:
            comparison.measure(raylens_first=number % 2 == 0)
            print(comparison.last_round, file=sys.stderr, flush=True)
    rates = f"{min(bandwidths):.1f} to {max(bandwidths):.1f} GB/s"
    title = f"smolvlm ({args.scale}), {args.threads} threads, {args.rounds} rounds; {rates}"
    print("\n".join([title, "", HEADER, *map(str, comparisons)]), flush=True)
    return comparisons


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_cpp",
        description=benchmarks.llama_cpp.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rows", nargs="*", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--prompts", nargs="*", type=int, default=[150, 750], help="tokens")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="tiny: the pocket model's shape"
    )
    parser.add_argument(
        "--folder", type=Path, default=default_folder(), help="keeps llama.cpp's sources and build"
    )
    parser.add_argument(
        "--programs", type=Path, help="a folder of llama.cpp's programs: nothing is built"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # each measurement sets its own number of threads
    programs = args.programs or build(args.folder, args.threads)
    with tempfile.TemporaryDirectory(prefix="raylens-llama-cpp-") as folder:
        comparisons = run(args, programs, Path(folder))
    return 0 if all(comparison.check.ok for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
