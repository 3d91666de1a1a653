"""That the host launches a decode step without asking the device for anything. On the device "meta"
there are no values that it could ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.options import LoadOptions
from raylens.core.types import Caption, Detect, ImagePart, Point, Query, TextPart
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model
from raylens.engine.sequence import sequences
from testing.exactness import request, user
from testing.pictures import random_pixels
from tests.unit.models.families import every_family

ASKS = {
    "_local_scalar_dense",
    "nonzero",
    "equal",
    "is_nonzero",
    "unique_consecutive",
    "masked_select",
}
Load = Callable[[str, LoadOptions], Model]


class Transfers(TorchDispatchMode):
    """Counts what comes to the host: copies that are queued, for which zeros come, and all that
    would be waited for."""

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
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | (kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensor: Any = given.get("self")
        if name in ASKS and tensor.is_meta:
            self.waits.append(name)
        if (
            name in ("to", "_to_copy")
            and tensor.is_meta
            and given.get("device") == torch.device("cpu")
        ):
            self.queued += bool(given.get("non_blocking"))
            self.waits += [] if given.get("non_blocking") else [name]
            return torch.ones(tensor.shape, dtype=tensor.dtype)
        return func(*args, **(kwargs or {}))


@every_family
def test_a_decode_step_waits_for_nothing_and_fetches_its_tokens_once(
    make: Callable[[Path], Path], load: Load, tmp_path: Path
) -> None:
    model = load(str(make(tmp_path)), LoadOptions(device="meta"))
    engine = Engine(
        model, EngineLimits(max_batch_size=8, look_ahead=True, prefill_batch=8, prefill_tokens=4096)
    )
    question = partial(request, user(ImagePart(0), TextPart("What?")))
    asked = [
        question(max_tokens=30),
        question(max_tokens=30, temperature=1.0, top_p=0.5, frequency_penalty=1.0),
    ]
    asked += [
        request(task)
        for task in (Caption(), Query("?"), Detect("a"), Point("b"))
        if task.name in model.tasks
    ]
    pixels = random_pixels(90, 60, 0)
    with Transfers() as transfers:
        for each in asked:
            engine.scheduler.add(sequences(each, model.prepare(each, [pixels]), model.tokenizer))
        while len(engine.scheduler.running) < len(asked):
            assert not [output.error for output in engine.step() if output.error]
        for _ in range(4):
            transfers.queued, transfers.waits = 0, []
            assert not [output.error for output in engine.step() if output.error]
            assert transfers.waits == []
            assert transfers.queued == 2  # the tokens, and whether each row was sound
