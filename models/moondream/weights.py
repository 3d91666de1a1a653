"""The tensors of a checkpoint. Each is taken exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.linear import Linear, WeightPacker

MAX_LISTED = 5
"""Unknown tensors that an error message names."""


class CheckpointMismatch(OSError):
    """A tensor is missing, is unknown, or has a shape that contradicts the configuration."""


class Weights:
    """Tensors by their names in ``vikhyatk/moondream2``, without the prefix ``model.``."""

    def __init__(
        self,
        names: Iterable[str],
        read: Callable[[str], Tensor],
        packer: WeightPacker,
        dtype: torch.dtype,
    ) -> None:
        self._names = {name.removeprefix("model."): name for name in names}
        self._read = read
        self._packer = packer
        self._dtype = dtype
        self.parameters = 0
        """Number of values in the tensors that were taken."""

    @classmethod
    def from_file(cls, path: Path, packer: WeightPacker, dtype: torch.dtype) -> Weights:
        """Open a safetensors file. A tensor is read when it is taken."""
        file = safe_open(path, "pt")
        return cls(file.keys(), file.get_tensor, packer, dtype)

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Take a tensor and move it to the device. Raises ``CheckpointMismatch``."""
        return self._packer.to_device(self._take(name, shape).to(self._dtype))

    def linear(
        self,
        name: str,
        inputs: int,
        outputs: int,
        activation: str = "none",
        output_order: Tensor | None = None,
        allows_int4: bool = False,
    ) -> Linear:
        """Take a layer with a bias. ``output_order`` (outputs,) permutes its outputs.

        The rest is as in :meth:`models.linear.WeightPacker.pack_layers`.

        Raises ``CheckpointMismatch``.
        """
        weight = self.tensor(f"{name}.weight", outputs, inputs)
        bias = self.tensor(f"{name}.bias", outputs)
        if output_order is not None:
            weight = weight[output_order]
            bias = bias[output_order]
        return self._packer.pack_weight(weight, bias, activation, allows_int4)

    def norm(self, name: str, size: int) -> nn.LayerNorm:
        """Take a layer norm over ``size`` values. Raises ``CheckpointMismatch``."""
        norm = nn.LayerNorm(size, device="meta")
        norm.weight = nn.Parameter(self.tensor(f"{name}.weight", size), requires_grad=False)
        norm.bias = nn.Parameter(self.tensor(f"{name}.bias", size), requires_grad=False)
        return norm

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._names:
            raise CheckpointMismatch(f"tensor {name}: missing")
        tensor = self._read(self._names.pop(name))
        if tensor.shape != shape:
            raise CheckpointMismatch(
                f"tensor {name}: shape {list(tensor.shape)}; expected {list(shape)}"
            )
        self.parameters += tensor.numel()
        return tensor

    def check_all_used(self) -> None:
        """Raises ``CheckpointMismatch`` if a tensor was never taken."""
        if self._names:
            unknown = sorted(self._names)
            listed = ", ".join(unknown[:MAX_LISTED])
            rest = len(unknown) - MAX_LISTED
            more = f" and {rest} more" if rest > 0 else ""
            raise CheckpointMismatch(f"unknown tensors: {listed}{more}")


class ShapeRecorder(Weights):
    """Weights without values. Records the name and shape of each tensor that a model takes."""

    def __init__(self) -> None:
        super().__init__((), lambda name: torch.empty(0), WeightPacker("meta"), torch.float32)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self.shapes[name] = shape
        return torch.empty(shape, device="meta")
