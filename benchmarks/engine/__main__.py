"""Print the table of :mod:`benchmarks.engine`; exit with status 0 if every target is met."""

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
from benchmarks.engine.rows import DEFAULT_ROWS, ROWS


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=benchmarks.engine.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", choices=ROWS, action="append", help="run this workload only; may be repeated"
    )
    parser.add_argument("--family", choices=DEFAULT_ROWS, default="smolvlm")
    parser.add_argument(
        "--scale", choices=("full", "tiny"), default="full", help="tiny: the pocket model's shape"
    )
    parser.add_argument(
        "--short", action="store_true", help="few requests and tokens: a smoke test"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    parser.add_argument("--quantize", choices=("int8", "int4"), default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tiles-per-step", type=int, default=DEFAULT_TILES_PER_STEP)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--plot", type=Path, help="draw the shares of the limits into this SVG file"
    )
    args = parser.parse_args()
    options = Options(
        family=args.family,
        scale=args.scale,
        dtype=args.dtype,
        device=args.device,
        quantize=args.quantize,
        threads=args.threads,
        tiles_per_step=args.tiles_per_step,
        short=args.short,
    )
    torch.set_num_threads(1)  # each measurement sets its own number of threads
    with tempfile.TemporaryDirectory(prefix="raylens-engine-") as folder:
        bench = Bench(options, Path(folder))
        rows = run(bench, args.only or DEFAULT_ROWS[options.family])
    if args.json:
        write_json(args.json, options, bench.machines, rows)
    if args.plot:
        write_svg(args.plot, bench.limits, rows)
    sys.exit(0 if all(check.ok for row in rows for check in row.checks) else 1)


def run(bench: Bench, names: Iterable[str]) -> list[Row]:
    """Run the workloads and print their rows.

    Each row goes to standard error, among Ray's own logs, as soon as it is measured. The whole
    table goes to standard output at the end.
    """
    options = bench.options
    precision = options.quantize or options.dtype
    title = (
        f"{options.family} ({options.scale}), {precision}, {options.device},"
        f" {options.threads} threads"
    )
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
