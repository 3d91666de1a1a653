"""Decode steps, prompts and vision encoders as CUDA graphs. Each is hundreds of kernels, which a GPU ends sooner than
Python starts them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

KEPT = 32
"""Graphs that are kept, and shapes that are remembered to have been seen once. A graph holds its output, and shares
all other memory with the rest."""

FEW = 16

Step = Callable[..., Tensor]
"""Tensors to states. Whatever else it reads or writes stays where it is from one call to the next."""


@dataclass(frozen=True)
class Captured:
    """``replay`` does the step again on what ``given`` then holds, and writes ``output``."""

    given: Sequence[Tensor]
    output: Tensor
    replay: Callable[[], None]


Capture = Callable[[Step, Sequence[Tensor]], Captured]


class Graphs:
    """Captures a step the second time that its key comes, and replays it from then on: most shapes of batch come again
    at once, and what passes by only once isn't worth the capture.

    A key stands for all that a captured step holds fast: the addresses and shapes of what it reads and writes beside
    the tensors that it is given.
    """

    def __init__(self, capture: Capture, kept: int = KEPT) -> None:
        self._capture = capture
        self._kept = kept
        self._known: OrderedDict[Hashable, Captured | None] = OrderedDict()
        self._works = True

    def run(self, key: Hashable, step: Step, given: Sequence[Tensor]) -> Tensor:
        """What ``step(*given)`` gives."""
        captured = self._captured(key, step, given) if self._works else None
        if captured is None:
            return step(*given)
        for held, new in zip(captured.given, given, strict=True):
            held.copy_(new)
        captured.replay()
        return captured.output.clone()

    def _captured(self, key: Hashable, step: Step, given: Sequence[Tensor]) -> Captured | None:
        """None where the key comes for the first time, or the step can't be captured."""
        captured = self._known.get(key)
        if captured is None and key in self._known:
            try:
                captured = self._capture(step, [tensor.clone() for tensor in given])
            except RuntimeError as error:  # a device that is lost says so again in the plain step
                logger.warning("the model goes on without CUDA graphs: %s", error)
                self._works = False
                self._known.clear()
                return None
        self._known[key] = captured
        self._known.move_to_end(key)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return captured


@dataclass(frozen=True)
class ModelGraphs:
    """A model's; None of them where its device is none of CUDA's."""

    decode: Graphs | None = None
    prefill: Graphs | None = None
    vision: Graphs | None = None

    @classmethod
    def on(cls, device: str, wanted: bool = True) -> ModelGraphs:
        """They share a pool of memory. What large ones are given and give is their own, so that few are kept."""
        if not (wanted and device.startswith("cuda")):
            return cls()
        capture = CudaCapture()
        return cls(Graphs(capture), Graphs(capture, FEW), Graphs(capture, FEW))


class CudaCapture:
    """Graphs that take what they need in between from one pool of memory: they are replayed one at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, step: Step, given: Sequence[Tensor]) -> Captured:
        # torch.cuda.graph would first empty the allocator's cache, which running requests then fill anew.
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # Other threads may allocate meanwhile; that is no error of this one's.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = step(*given)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return Captured(given, output, graph.replay)
