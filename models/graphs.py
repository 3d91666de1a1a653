"""Decode steps, prompts and vision encoders as CUDA graphs. Each is hundreds of kernels, which a
GPU ends sooner than Python starts them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raylens.engine.reuse import ByteLRU

logger = logging.getLogger(__name__)

KEPT = 32
"""Graphs that are kept at most."""
SEEN = 256
"""Shapes that are remembered to have come."""
SHARE = 1 / 50
"""Of the process's share of the card, what the graphs of prompts may hold, and those of vision
encoders: a graph holds its inputs and its output. All other memory is shared among graphs, but not
with operations outside of them."""

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
    """Captures a step the second time that its key comes, and replays it from then on: most shapes
    of batch come again at once, and what passes by only once isn't worth the capture.

    A key stands for all that a captured step holds fast: the addresses and shapes of what it reads
    and writes beside the tensors that it is given.
    """

    def __init__(self, capture: Capture, kept: int = KEPT, budget: int = 2**28) -> None:
        """``budget``: bytes of inputs and outputs that ``kept`` graphs at most may hold."""
        self._capture = capture
        self._least = budget // kept
        self._graphs: ByteLRU[Hashable, Captured] = ByteLRU(budget)
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()
        """Keys that have come, and whether what they stand for can be kept."""
        self.works = True

    def run(self, key: Hashable, step: Step, given: Sequence[Tensor]) -> Tensor:
        """What ``step(*given)`` gives."""
        captured = self._graphs.get(key) or self._new(key, step, given)
        if captured is None:
            return step(*given)
        for held, new in zip(captured.given, given, strict=True):
            held.copy_(new)
        captured.replay()
        return captured.output.clone()

    def _new(self, key: Hashable, step: Step, given: Sequence[Tensor]) -> Captured | None:
        """None if the key comes for the first time, or the step can't be captured or kept."""
        wanted = self.works and self._seen.get(key, False)
        self._remember(key, self._seen.get(key, True))
        if not wanted:
            return None
        try:
            captured = self._capture(step, [tensor.clone() for tensor in given])
        except torch.OutOfMemoryError:
            # What the allocator keeps for later isn't given to a capture: free it, and try when the
            # key has come twice.
            self._graphs.clear()
            self._seen.clear()
            torch.cuda.empty_cache()
            return None
        except RuntimeError as error:  # a device that is lost says so again in the plain step
            logger.warning("the model goes on without CUDA graphs: %s", error)
            self.works = False
            self._graphs.clear()
            return None
        size = sum(tensor.nbytes for tensor in (*captured.given, captured.output))
        self._graphs.put(key, captured, max(size, self._least))
        self._remember(key, size <= self._graphs.budget)
        return captured

    def _remember(self, key: Hashable, can_be_kept: bool) -> None:
        self._seen[key] = can_be_kept
        self._seen.move_to_end(key)
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)


@dataclass(frozen=True)
class ModelGraphs:
    """A model's; all None on a device that isn't CUDA's."""

    decode: Graphs | None = None
    prefill: Graphs | None = None
    vision: Graphs | None = None

    @classmethod
    def on(cls, device: str, wanted: bool = True) -> ModelGraphs:
        """They share a pool of memory."""
        if not (wanted and device.startswith("cuda")):
            return cls()
        capture = CudaCapture()
        card = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        budget = int(card * torch.cuda.get_per_process_memory_fraction() * SHARE)
        return cls(Graphs(capture), Graphs(capture, budget=budget), Graphs(capture, budget=budget))


class CudaCapture:
    """Graphs that take what they need in between from one pool of memory: they are replayed one at
    a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, step: Step, given: Sequence[Tensor]) -> Captured:
        # torch.cuda.graph would first empty the allocator's cache, which running requests then fill
        # anew.
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
