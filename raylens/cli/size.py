"""The table of ``raylens size``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.sizing import Footprint, needed_gpu_bytes
from raylens.core.config import ModelConfig
from raylens.engine.kv_cache import row_capacity

ITEM_SIZES = {"bfloat16": 2, "float32": 4}
"""Bytes of a value by dtype; float16 is as bfloat16."""
GIB = 2**30


def print_sizes(
    checkpoint: str, footprint: Footprint, gpu_gib: Sequence[float], batch: int, tokens: int
) -> None:
    """Print which shares of GPUs of these sizes hold ``batch`` answers of ``tokens`` tokens, for
    each dtype."""
    table = Table("dtype", "weights, GiB", "kv_cache, GiB")
    for size in gpu_gib:
        table.add_column(f"num_gpus of {size:g} GiB")
        table.add_column("replicas a GPU")
    for row in size_rows(footprint, gpu_gib, batch, tokens):
        table.add_row(*row)
    console = Console()
    console.print(
        f"{escape(checkpoint)}: {footprint.parameters / 1e9:.2f} billion parameters; {batch}"
        f" answers of {tokens} tokens, pictures and prompts included",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)


def size_rows(
    footprint: Footprint, gpu_gib: Sequence[float], batch: int, tokens: int
) -> list[list[str]]:
    """Return the rows of the table: dtype, sizes in GiB, and for each GPU the share, rounded up to
    a hundredth, and the number of replicas. If a model needs more than a GPU, its row has the GiB
    that it needs instead."""
    fields = ModelConfig.model_fields
    caches = int(fields["feature_cache"].default) + int(fields["prefix_cache"].default)
    kv_values = batch * row_capacity(tokens) * footprint.kv_values_per_token
    rows = []
    for dtype, itemsize in ITEM_SIZES.items():
        needed = needed_gpu_bytes(footprint, itemsize, batch, tokens, caches) / GIB
        row = [
            dtype,
            f"{footprint.parameters * itemsize / GIB:.1f}",
            f"{kv_values * itemsize / GIB:.1f}",
        ]
        for size in gpu_gib:
            share = math.ceil(100 * needed / size) / 100
            fits = share <= 1
            row.append(f"{share:.2f}" if fits else f"needs {math.ceil(needed)} GiB")
            row.append(f"{int(1 / share)}" if fits else "0")
        rows.append(row)
    return rows
