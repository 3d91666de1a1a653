"""Run the stages of :mod:`benchmarks.gpu`; exit with status 0 if no part failed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path

import torch
import transformers

import benchmarks.gpu
from benchmarks.gpu.card import describe
from benchmarks.gpu.results import Results, StagePart
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.subjects import FAMILY_BY_MODEL

STAGES = ("right", "shares", "fast", "why")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="tiny: a smoke test"
    )
    parser.add_argument(
        "--stages",
        type=_parse_subset(STAGES),
        default=STAGES,
        help=f"comma-separated, of {','.join(STAGES)}",
    )
    parser.add_argument(
        "--models",
        type=_parse_subset(FAMILY_BY_MODEL),
        default=tuple(FAMILY_BY_MODEL),
        help=f"comma-separated, of {','.join(FAMILY_BY_MODEL)}",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="skip the parts that would start later than this"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder for results.json")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; for a smoke test: --device cpu --scale tiny")
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)  # each measurement sets its own number of threads
    environment = {
        "device": describe(args.device),
        "transformers": transformers.__version__,
        "scale": args.scale,
        "models": args.models,
    }
    results = Results(args.out, args.minutes, environment)
    print(f"{environment['device']}, transformers {environment['transformers']}", flush=True)
    # On shared cores, the threads of a small operation would wait for each other.
    threads = 1 if args.scale == "tiny" else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="raylens-gpu-") as folder:
        setup = Setup(args.device, args.scale, args.models, threads, Path(folder))
        with closing(setup):
            for stage in args.stages:
                for part in _import_parts(stage)(setup):
                    results.run(stage, part)
                setup.free()
    results.print_summary()
    return int(results.failed)


def _import_parts(stage: str) -> Callable[[Setup], Iterator[StagePart]]:
    """Import a stage only when it runs: a stage that is left out need not be importable."""
    parts: Callable[[Setup], Iterator[StagePart]] = import_module(f"benchmarks.gpu.{stage}").parts
    return parts


def _parse_subset(names: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Return an argparse type for a comma-separated list of some of the names."""

    def parse(text: str) -> tuple[str, ...]:
        subset = tuple(text.split(","))
        unknown = [name for name in subset if name not in names]
        if unknown:
            message = f"unknown name {unknown[0]!r}; known: {', '.join(names)}"
            raise argparse.ArgumentTypeError(message)
        return subset

    return parse


if __name__ == "__main__":
    sys.exit(main())
