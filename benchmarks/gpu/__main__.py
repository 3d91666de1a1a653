"""``python -m benchmarks.gpu``: prints each result as it comes; the exit status is 0 if nothing
failed."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path

import torch
import transformers

import benchmarks.gpu
from benchmarks.gpu.card import describe
from benchmarks.gpu.results import Part, Results
from benchmarks.gpu.setup import Setup
from benchmarks.gpu.subjects import FAMILIES

STAGES = ("right", "shares", "fast", "why")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="tiny: shows that everything runs"
    )
    parser.add_argument(
        "--stages", type=_some_of(STAGES), default=STAGES, help=f"of {','.join(STAGES)}"
    )
    parser.add_argument(
        "--models",
        type=_some_of(FAMILIES),
        default=tuple(FAMILIES),
        help=f"of {','.join(FAMILIES)}",
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="nothing begins once these have passed"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="the folder for results.json")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --scale tiny shows that everything runs")
    transformers.utils.logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)  # whoever computes with more says so
    about = {
        "device": describe(given.device),
        "transformers": transformers.__version__,
        "scale": given.scale,
        "models": given.models,
    }
    results = Results(given.out, given.minutes, about)
    print(f"{about['device']}, transformers {about['transformers']}", flush=True)
    with tempfile.TemporaryDirectory(prefix="raylens-gpu-") as folder:
        # If others want the same cores, small operations in several threads wait for each other.
        threads = 1 if given.scale == "tiny" else os.cpu_count() or 1
        with closing(
            Setup(given.device, given.scale, given.models, threads, Path(folder))
        ) as setup:
            for stage in given.stages:
                for part in _parts(stage)(setup):
                    results.run(stage, part)
                setup.free()
    results.summary()
    return int(results.failed)


def _parts(stage: str) -> Callable[[Setup], Iterator[Part]]:
    """A stage that isn't asked for need not even be importable."""
    parts: Callable[[Setup], Iterator[Part]] = import_module(f"benchmarks.gpu.{stage}").parts
    return parts


def _some_of(names: tuple[str, ...] | dict[str, str]) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(names)}")
        return chosen

    return read


if __name__ == "__main__":
    sys.exit(main())
