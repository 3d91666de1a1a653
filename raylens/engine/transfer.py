"""Small host–device copies that do not block the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: Sequence[int] | NDArray[np.generic], device: str | torch.device) -> Tensor:
    """Return the values on the device. A list of integers becomes int64.

    A copy from pageable memory blocks the host until all work on the stream is done, so pinned
    memory is used: its copy is queued after that work. The caching allocator keeps the pinned block
    until the copy is done.
    """
    array = values if isinstance(values, np.ndarray) else np.array(values)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Asynchronous copies of tensors to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._completed: torch.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._completed = torch.Event("cuda")
            self._completed.record()

    @property
    def is_ready(self) -> bool:
        """Whether the copies are complete, so that ``wait`` returns at once."""
        return self._completed is None or self._completed.query()

    def wait(self) -> list[Tensor]:
        """Wait for the copies to complete, and return them in order."""
        if self._completed is not None:
            self._completed.synchronize()
        return self._copies
