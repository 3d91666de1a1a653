"""The tensors of a checkpoint, each of which is taken once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.linear import Linear, Packer

SHOWN = 5


class CheckpointMismatch(OSError):
    """A tensor is missing, is left over, or has another shape than the configuration says."""


class Weights:
    """Tensors by their names in ``vikhyatk/moondream2``, without the ``model.`` that stands before
    them there."""

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Tensor],
        packer: Packer,
        dtype: torch.dtype,
    ) -> None:
        self._names = {name.removeprefix("model."): name for name in names}
        self._read = read
        self._packer = packer
        self._dtype = dtype

    @classmethod
    def of_file(cls, path: Path, packer: Packer, dtype: torch.dtype) -> Weights:
        """Of a safetensors file; a tensor is read when it is taken."""
        file = safe_open(path, "pt")
        return cls(file.keys(), file.get_tensor, packer, dtype)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """On its device. Raises ``CheckpointMismatch``."""
        return self._packer.tensor(self._take(name, shape).to(self._dtype))

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        activation: str = "none",
        rows: Tensor | None = None,
    ) -> Linear:
        """A layer with a bias; ``rows``: its outputs in another order."""
        weight, bias = (
            self.tensor(f"{name}.weight", outputs, inputs),
            self.tensor(f"{name}.bias", outputs),
        )
        if rows is not None:
            weight, bias = weight[rows], bias[rows]
        return self._packer.weight(weight, bias, activation)

    def norm(self, name: str, size: int) -> nn.LayerNorm:
        norm = nn.LayerNorm(size, device="meta")
        norm.weight = nn.Parameter(self.tensor(f"{name}.weight", size), requires_grad=False)
        norm.bias = nn.Parameter(self.tensor(f"{name}.bias", size), requires_grad=False)
        return norm

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._names:
            raise CheckpointMismatch(f"the tensor {name} is missing")
        tensor = self._read(self._names.pop(name))
        if tensor.shape != shape:
            raise CheckpointMismatch(
                f"the tensor {name} has the shape {list(tensor.shape)}; {list(shape)} is needed"
            )
        return tensor

    def check_all_used(self) -> None:
        """Raises ``CheckpointMismatch`` where tensors are left."""
        if self._names:
            left = sorted(self._names)
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            raise CheckpointMismatch(f"no such tensor is known: {', '.join(left[:SHOWN])}{more}")


class ShapeRecorder(Weights):
    """Has no tensors, and takes note of those that a model asks for: ``shapes`` by name."""

    def __init__(self) -> None:
        super().__init__((), lambda name: torch.empty(0), Packer("meta"), torch.float32)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self.shapes[name] = shape
        return torch.empty(shape, device="meta")
