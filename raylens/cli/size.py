"""The table of ``raylens size``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.sizing import Footprint, place
from raylens.core.config import ModelConfig

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
    for row in size_rows(footprint, gpu_gib, batch * tokens):
        table.add_row(*row)
    console = Console()
    console.print(
        f"{escape(checkpoint)}: {footprint.parameters / 1e9:.2f} billion parameters; {batch}"
        f" answers of {tokens} tokens, pictures and prompts included",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)


def size_rows(footprint: Footprint, gpu_gib: Sequence[float], tokens: int) -> list[list[str]]:
    """Return the rows of the table: dtype, sizes in GiB, and for each GPU the share and the number
    of replicas. A model that needs more than a GPU has the GiB that it needs instead."""
    rows = []
    for dtype, itemsize in ITEM_SIZES.items():
        row = [
            dtype,
            f"{footprint.parameters * itemsize / GIB:.1f}",
            f"{tokens * footprint.kv_values_per_token * itemsize / GIB:.1f}",
        ]
        for size in gpu_gib:
            row += _share(footprint, itemsize, int(size * GIB), tokens)
        rows.append(row)
    return rows


def _share(footprint: Footprint, itemsize: int, gpu_bytes: int, tokens: int) -> tuple[str, str]:
    fields = ModelConfig.model_fields
    caches = int(fields["feature_cache"].default) + int(fields["prefix_cache"].default)
    gpus = place(footprint, itemsize, gpu_bytes, tokens, caches)
    if gpus > 1:
        return f"needs {gpus * gpu_bytes / GIB:.0f} GiB", "0"
    return f"{gpus:.2f}", f"{int(1 / gpus)}"
