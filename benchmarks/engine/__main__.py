"""``python -m benchmarks.engine``: prints the table; the exit status is 0 where every target is
met."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

import benchmarks.engine
from benchmarks.engine.bench import DEFAULT_TILES_PER_STEP, Bench, Options
from benchmarks.engine.report import HEADER, Row, write_json, write_svg
from benchmarks.engine.rows import OF_FAMILY, ROWS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=benchmarks.engine.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=ROWS, action="append", help="this workload; may be given several times"
    )
    parser.add_argument("--family", choices=OF_FAMILY, default="smolvlm")
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="tiny: the pocket model's shape"
    )
    parser.add_argument(
        "--short", action="store_true", help="few requests and tokens: shows that everything runs"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--quantize", choices=("int8",), default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tiles-per-step", type=int, default=DEFAULT_TILES_PER_STEP)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw the shares of the limits here, as SVG")
    given = parser.parse_args()
    options = Options(
        family=given.family,
        scale=given.scale,
        dtype=given.dtype,
        device=given.device,
        quantize=given.quantize,
        threads=given.threads,
        tiles_per_step=given.tiles_per_step,
        short=given.short,
    )
    torch.set_num_threads(1)  # whatever is measured says itself with how many
    with tempfile.TemporaryDirectory(prefix="raylens-engine-") as folder:
        bench = Bench(options, Path(folder))
        rows = run(bench, given.only or OF_FAMILY[options.family])
    if given.json:
        write_json(given.json, options, bench.machines, rows)
    if given.plot:
        write_svg(given.plot, bench.limits, rows)
    sys.exit(0 if all(check.ok for row in rows for check in row.checks) else 1)


def run(bench: Bench, names: Iterable[str]) -> list[Row]:
    """Tells each row on standard error as it is measured, where Ray talks too, and prints the table
    at the end."""
    options = bench.options
    precision = options.quantize or options.dtype
    title = f"{options.family} ({options.scale}), {precision}, {options.device}, {options.threads} threads"
    rows = []
    for name in names:
        print(f"{title}; {bench.measure()}", file=sys.stderr, flush=True)
        for row in ROWS[name](bench):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    print("\n".join([f"{title}; {bench.limits}", "", HEADER, *map(str, rows)]), flush=True)
    return rows


if __name__ == "__main__":
    main()
