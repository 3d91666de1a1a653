"""Training rows: many questions about one picture packed into one sequence under a block mask.

A row is a shared prefix (the turn's start and the picture's tokens) followed by segments. A segment
attends to the prefix and to itself; its positions continue from the prefix, as if it stood there
alone. The picture is encoded once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100


@dataclass
class Segment:
    """Token ids of a question and its answer; ``learn`` marks the tokens that the loss counts."""

    kind: str
    ids: list[int]
    learn: list[bool]


@dataclass
class Row:
    """One packed sequence. ``tiles`` names the pictures whose features replace the image tokens, in
    order."""

    prefix: list[int]
    tiles: list[int]
    segments: list[Segment] = field(default_factory=list)
    positions: NDArray[np.int64] | None = None
    """The prefix's rotary positions, (axes, length), where they don't just count."""

    @property
    def prefix_positions(self) -> NDArray[np.int64]:
        return np.arange(len(self.prefix))[None] if self.positions is None else self.positions

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(segment.ids) for segment in self.segments)


@dataclass
class PackedBatch:
    """``ids``, ``labels``: (rows, length); ``mask``: (rows, 1, length, length), True where
    attended.

    ``positions``: (axes, rows, length).
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    weights: Tensor
    """(rows, length): a segment of n learned tokens weighs √n in all, so that short answers count
    beside captions."""
    mask: Tensor
    tiles: Tensor
    spans: list[tuple[str, int, int, int]]
    """(kind, row, start, end) of every segment."""


def pack(
    rows: list[Row], pad_id: int, device: torch.device, whole_prefix: bool = False
) -> PackedBatch:
    """Lays rows out as tensors; a label stands at the position that predicts it. ``whole_prefix``:
    its tokens attend to each other, not only to those before."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    axes = len(rows[0].prefix_positions)
    positions = torch.zeros((axes, len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    weights = torch.zeros((len(rows), length))
    group = torch.full((len(rows), length), -1)
    spans = []
    for index, row in enumerate(rows):
        end = len(row.prefix)
        ids[index, :end] = torch.tensor(row.prefix)
        positions[:, index, :end] = torch.from_numpy(row.prefix_positions)
        following = int(row.prefix_positions.max()) + 1
        group[index, :end] = 0
        for number, segment in enumerate(row.segments, start=1):
            start, end = end, end + len(segment.ids)
            ids[index, start:end] = torch.tensor(segment.ids)
            positions[:, index, start:end] = following + torch.arange(end - start)
            group[index, start:end] = number
            learned = torch.tensor(segment.learn[1:])
            labels[index, start : end - 1] = torch.where(
                learned, ids[index, start + 1 : end], IGNORED
            )
            weights[index, start : end - 1] = learned / learned.sum().sqrt()
            spans.append((segment.kind, index, start, end))
    same = group[:, :, None] == group[:, None, :]
    in_prefix = group[:, None, :] == 0
    mask = (same | in_prefix) & torch.ones(length, length, dtype=torch.bool).tril()
    if whole_prefix:
        mask |= (group == 0)[:, :, None] & in_prefix
    tiles = torch.tensor([tile for row in rows for tile in row.tiles])
    return PackedBatch(
        ids.to(device),
        positions.to(device),
        labels.to(device),
        weights.to(device),
        mask[:, None].to(device),
        tiles.to(device),
        spans,
    )


def exact_segments(batch: PackedBatch, predicted: Tensor) -> list[tuple[str, bool]]:
    """(kind, whether every learned token is the most likely one) of every segment; equals greedy
    exactness."""
    right = ((predicted == batch.labels) | (batch.labels == IGNORED)).cpu()
    return [(kind, bool(right[row, start:end].all())) for kind, row, start, end in batch.spans]
