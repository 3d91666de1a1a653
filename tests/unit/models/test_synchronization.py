"""The host launches a decode step without waiting for the device.

The models run on the device "meta", whose tensors have no values that the host could wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.options import LoadOptions
from raylens.core.types import Caption, Detect, ImagePart, Point, Query, Task, TextPart
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model
from raylens.engine.sequence import make_sequences
from testing.exactness import request, user
from testing.families import every_family
from testing.pictures import random_pixels

SYNCHRONIZING = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "is_nonzero",
    "unique_consecutive",
    "masked_select",
}
"""Operations whose result the host reads at once."""
Load = Callable[[str, LoadOptions], Model]


class TransferCounter(TorchDispatchMode):
    """Counts copies to the host that are queued, and records operations that would wait.

    A copy to the host returns ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queued = 0
        self.waits: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        arguments: dict[str, Any] = dict(zip(names, args, strict=False)) | (kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensor: Any = arguments.get("self")
        if name in SYNCHRONIZING and tensor.is_meta:
            self.waits.append(name)
        is_copy = name in ("to", "_to_copy")
        if is_copy and tensor.is_meta and arguments.get("device") == torch.device("cpu"):
            if arguments.get("non_blocking"):
                self.queued += 1
            else:
                self.waits.append(name)
            return torch.ones(tensor.shape, dtype=tensor.dtype)
        return func(*args, **(kwargs or {}))


@every_family
def test_a_decode_step_waits_for_nothing_and_fetches_its_tokens_once(
    make: Callable[[Path], Path], load: Load, tmp_path: Path
) -> None:
    model = load(str(make(tmp_path)), LoadOptions(device="meta"))
    engine = Engine(
        model,
        EngineLimits(
            max_batch_size=8,
            async_scheduling=True,
            max_prefill_batch_size=8,
            max_prefill_tokens=4096,
        ),
    )
    question = partial(request, user(ImagePart(0), TextPart("What?")), max_tokens=30)
    tasks: list[Task] = [Caption(), Query("?"), Detect("a"), Point("b")]
    requests = [
        question(),
        question(temperature=1.0, top_p=0.5, frequency_penalty=1.0),
        *(request(task) for task in tasks if task.name in model.tasks),
    ]
    pixels = random_pixels(90, 60, 0)
    with TransferCounter() as transfers:
        for vision_request in requests:
            prompt = model.prepare(vision_request, [pixels])
            engine.scheduler.add(make_sequences(vision_request, prompt, model.tokenizer))
        while len(engine.scheduler.running) < len(requests):
            assert not [output.error for output in engine.step() if output.error]
        for _ in range(4):
            transfers.queued = 0
            transfers.waits = []
            assert not [output.error for output in engine.step() if output.error]
            assert transfers.waits == []
            assert transfers.queued == 2  # the tokens, and whether each row's logits are finite
