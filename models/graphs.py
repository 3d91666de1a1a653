"""Decode steps, prompts and vision encoders as CUDA graphs.

Each is hundreds of kernels, and a GPU finishes a kernel sooner than Python can launch the next.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raylens.core.lru import ByteLRU

logger = logging.getLogger(__name__)

MAX_GRAPHS = 32
MAX_SEEN_KEYS = 256
MEMORY_SHARE = 1 / 50
"""Fraction of the process's share of GPU memory that the inputs and outputs of prompt graphs may
take, and as much again for encoder graphs.

The graph caches share all other memory with each other, but not with operations outside of
graphs."""

Step = Callable[..., Tensor]
"""Maps tensors to states. Whatever else it reads or writes keeps its address between calls."""


@dataclass(frozen=True)
class CapturedStep:
    """A captured step: ``replay`` runs it again on ``inputs`` and overwrites ``output``."""

    inputs: Sequence[Tensor]
    output: Tensor
    replay: Callable[[], None]


Capture = Callable[[Step, Sequence[Tensor]], CapturedStep]


class GraphCache:
    """A cache of captured steps.

    A step is captured when its key is seen for the second time, and replayed from then on. Most
    batch shapes repeat soon, and a shape that occurs only once isn't worth a capture.

    A key identifies everything that a captured step fixes: the addresses and shapes of what it
    reads and writes beside its inputs.
    """

    def __init__(self, capture: Capture, max_graphs: int = MAX_GRAPHS, budget: int = 2**28) -> None:
        """``budget``: bytes of inputs and outputs that all graphs together may hold."""
        self._capture = capture
        self._min_size = budget // max_graphs
        self._graphs: ByteLRU[Hashable, CapturedStep] = ByteLRU(budget)
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()
        """Keys that have been seen, and whether their graphs fit into the budget."""
        self.enabled = True

    def run(self, key: Hashable, step: Step, inputs: Sequence[Tensor]) -> Tensor:
        """Return ``step(*inputs)``, computed by a graph if there is one."""
        captured = self._graphs.get(key) or self._capture_if_seen(key, step, inputs)
        if captured is None:
            return step(*inputs)
        for static, tensor in zip(captured.inputs, inputs, strict=True):
            static.copy_(tensor)
        captured.replay()
        return captured.output.clone()

    def _capture_if_seen(
        self, key: Hashable, step: Step, inputs: Sequence[Tensor]
    ) -> CapturedStep | None:
        """Return None if the key is new, or if the step can't be captured or kept."""
        should_capture = self.enabled and self._seen.get(key, False)
        self._remember(key, self._seen.get(key, True))
        if not should_capture:
            return None
        try:
            captured = self._capture(step, [tensor.clone() for tensor in inputs])
        except torch.OutOfMemoryError:
            # A capture can't use memory that the allocator caches. Free that memory, and capture
            # the step when its key has been seen twice again.
            self._graphs.clear()
            self._seen.clear()
            torch.cuda.empty_cache()
            return None
        except RuntimeError as error:  # if the device is lost, the plain step raises this again
            logger.warning("CUDA graphs are off: capturing failed: %s", error)
            self.enabled = False
            self._graphs.clear()
            return None
        size = sum(tensor.nbytes for tensor in (*captured.inputs, captured.output))
        self._graphs.put(key, captured, max(size, self._min_size))
        self._remember(key, size <= self._graphs.budget)
        return captured

    def _remember(self, key: Hashable, fits: bool) -> None:
        self._seen[key] = fits
        self._seen.move_to_end(key)
        if len(self._seen) > MAX_SEEN_KEYS:
            self._seen.popitem(last=False)


@dataclass(frozen=True)
class ModelGraphs:
    """The graphs of one model; all are None on devices other than CUDA."""

    decode: GraphCache | None = None
    prefill: GraphCache | None = None
    vision: GraphCache | None = None

    @classmethod
    def create(cls, device: str, enabled: bool = True) -> ModelGraphs:
        """Return a model's graphs on the device; all of them share one memory pool."""
        if not (enabled and device.startswith("cuda")):
            return cls()
        capture = CudaCapture()
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        budget = int(total * torch.cuda.get_per_process_memory_fraction() * MEMORY_SHARE)
        return cls(
            GraphCache(capture),
            GraphCache(capture, budget=budget),
            GraphCache(capture, budget=budget),
        )


class CudaCapture:
    """Captures CUDA graphs that share one memory pool for intermediate results.

    They can share it because they are replayed one at a time.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, step: Step, inputs: Sequence[Tensor]) -> CapturedStep:
        # torch.cuda.graph would empty the allocator's cache first, and running requests would have
        # to fill it again.
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            # thread_local: allocations by other threads do not fail this capture.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                output = step(*inputs)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return CapturedStep(inputs, output, graph.replay)
