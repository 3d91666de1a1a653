"""Training rows: many questions about one picture, packed into one sequence under a block mask.

A row is a shared prefix (the start of the turn and the image tokens) followed by segments. A
segment attends to the prefix and to itself, and its positions continue from the prefix as if it
were the only one. The picture is therefore encoded once for all segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""Label of a position that the loss ignores."""


@dataclass
class Segment:
    """A question and its answer as token ids."""

    task: str
    """Task name for progress reports."""
    ids: list[int]
    learn: list[bool]
    """Whether the loss includes each token."""


@dataclass
class Row:
    """One packed sequence."""

    prefix: list[int]
    feature_indices: list[int]
    """Indices of the features that replace the prefix's image tokens, in order."""
    segments: list[Segment] = field(default_factory=list)
    positions: NDArray[np.int64] | None = None
    """Rotary positions of the prefix (axes, length); None means 0, 1, 2, …"""
    next_position: int | None = None
    """Rotary position of a segment's first token; None means the one after the largest."""

    @property
    def prefix_positions(self) -> NDArray[np.int64]:
        """Rotary positions of the prefix (axes, length)."""
        return np.arange(len(self.prefix))[None] if self.positions is None else self.positions

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(segment.ids) for segment in self.segments)


@dataclass
class PackedBatch:
    """Rows as padded tensors."""

    ids: Tensor
    """(rows, length)."""
    positions: Tensor
    """(axes, rows, length)."""
    labels: Tensor
    """(rows, length): the next token, or ``IGNORED``."""
    weights: Tensor
    """(rows, length): a segment of n learned tokens weighs √n in total, which keeps
    short answers relevant next to captions."""
    mask: Tensor
    """(rows, 1, length, length): True if the query (row of the matrix) attends to the key."""
    feature_indices: Tensor
    """Feature indices of all rows, in order."""
    spans: list[tuple[str, int, int, int]]
    """(task, row, start, end) of every segment."""


def pack(
    rows: list[Row], pad_id: int, device: torch.device, bidirectional_prefix: bool = False
) -> PackedBatch:
    """Pack rows into padded tensors. A label is stored at the position that predicts it.

    With ``bidirectional_prefix`` the tokens of a prefix attend to each other in both directions.
    """
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    axes = len(rows[0].prefix_positions)
    positions = torch.zeros((axes, len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    weights = torch.zeros((len(rows), length))
    # 0 for the prefix, then the number of the segment; −1 for padding.
    groups = torch.full((len(rows), length), -1)
    spans = []
    for index, row in enumerate(rows):
        end = len(row.prefix)
        ids[index, :end] = torch.tensor(row.prefix)
        positions[:, index, :end] = torch.from_numpy(row.prefix_positions)
        first_position = row.next_position
        if first_position is None:
            first_position = int(row.prefix_positions.max()) + 1
        groups[index, :end] = 0
        for number, segment in enumerate(row.segments, start=1):
            start = end
            end = start + len(segment.ids)
            ids[index, start:end] = torch.tensor(segment.ids)
            positions[:, index, start:end] = first_position + torch.arange(end - start)
            groups[index, start:end] = number
            learn_next = torch.tensor(segment.learn[1:])
            labels[index, start : end - 1] = torch.where(
                learn_next, ids[index, start + 1 : end], IGNORED
            )
            weights[index, start : end - 1] = learn_next / learn_next.sum().sqrt()
            spans.append((segment.task, index, start, end))
    feature_indices = torch.tensor([number for row in rows for number in row.feature_indices])
    return PackedBatch(
        ids.to(device),
        positions.to(device),
        labels.to(device),
        weights.to(device),
        _attention_mask(groups, bidirectional_prefix)[:, None].to(device),
        feature_indices.to(device),
        spans,
    )


def _attention_mask(groups: Tensor, bidirectional_prefix: bool) -> Tensor:
    """Return the (rows, length, length) mask for group numbers (rows, length)."""
    length = groups.shape[1]
    in_same_group = groups[:, :, None] == groups[:, None, :]
    is_prefix_key = groups[:, None, :] == 0
    mask = (in_same_group | is_prefix_key) & torch.ones(length, length, dtype=torch.bool).tril()
    if bidirectional_prefix:
        is_prefix_query = groups[:, :, None] == 0
        mask |= is_prefix_query & is_prefix_key
    return mask


def score_segments(batch: PackedBatch, predicted: Tensor) -> list[tuple[str, bool]]:
    """Return (task, whether every learned token is the most likely one) of every segment.

    This equals an exact match of greedy decoding.
    """
    is_right = ((predicted == batch.labels) | (batch.labels == IGNORED)).cpu()
    return [(task, bool(is_right[row, start:end].all())) for task, row, start, end in batch.spans]
