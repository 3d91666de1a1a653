"""Small tensors between the host and a GPU, without waiting for the work that the GPU has in hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: Sequence[int] | NDArray[np.generic], device: str | torch.device) -> Tensor:
    """The values on the device; integers of a list are int64.

    A copy from ordinary memory waits for all work on the stream. One from pinned memory is queued
    behind that work, and the caching allocator keeps the pinned block until the copy is done.
    """
    tensor = torch.from_numpy(
        np.ascontiguousarray(values if isinstance(values, np.ndarray) else np.array(values))
    )
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Tensors on their way to the host; their values are there once ``wait`` returns."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrived: torch.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrived = torch.Event("cuda")
            self._arrived.record()

    @property
    def ready(self) -> bool:
        """Whether ``wait`` would return at once."""
        return self._arrived is None or self._arrived.query()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, in order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
