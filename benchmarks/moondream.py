"""Moondream on the engine against the machine's limits and against the reference implementation, in
one run.

``python -m benchmarks.moondream --reference FOLDER`` builds random weights in the shape of
Moondream 0.5B, bfloat16, and captions pictures of 378 and 1024 pixels in 50 tokens, from pixels to
the last token: by the engine, one at a time and eight in flight, and by the reference
implementation, one by one. FOLDER is a checkout of https://github.com/vikhyat/moondream, which is
not part of this repository; without it its rows are left out.

Of a picture of 378 pixels the whole and its one crop show the same, and the engine encodes it once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.engine.bench import HOUR, EngineClient, pixels_of
from benchmarks.engine.generate import Question
from benchmarks.engine.limits import Machine, Text, Tower, Work, in_a_thread, measure_machine
from benchmarks.engine.load import Answer, Ask, Load, drive
from benchmarks.engine.report import HEADER, Check, Row, write_json
from benchmarks.photograph import photograph
from models.linear import Packer, Quantize
from models.moondream.config import MoondreamConfig, RegionConfig, TextConfig, VisionConfig
from models.moondream.crops import Crops
from models.moondream.model import Moondream, tensor_shapes
from models.moondream.weights import Weights
from models.options import LoadOptions
from raylens.core.types import Caption, VisionRequest
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Pixels
from training.moondream_checkpoint import pocket_tokenizer

TOKENS, IN_FLIGHT, CAPTIONS, ALONE = 50, 8, 24, 4
SIDES = (378, 1024)
KV_BYTES = 2 * 2**30
CONFIGS = {
    "full": MoondreamConfig(
        TextConfig(dim=1024, ff_dim=4096, n_heads=16, n_kv_heads=16),
        VisionConfig(enc_dim=720, enc_ff_dim=2690, enc_n_heads=10, proj_out_dim=1024),
        RegionConfig(dim=1024),
    ),
    "tiny": MoondreamConfig(
        TextConfig(dim=128, ff_dim=256, n_layers=2, n_heads=2, n_kv_heads=2),
        VisionConfig(enc_dim=48, enc_ff_dim=96, enc_n_heads=2, proj_out_dim=128, proj_inner_dim=64),
        RegionConfig(dim=128, inner_dim=64),
    ),
}
"""``full``: upstream's ``config_md05.json``, with the tokens of today's checkpoints; ``tiny`` only
shows that everything runs."""


@dataclass(frozen=True)
class Options:
    scale: str
    quantize: Quantize | None
    threads: int
    short: bool
    reference: Path | None

    @property
    def config(self) -> MoondreamConfig:
        return CONFIGS[self.scale]


def random_weights(config: MoondreamConfig, device: str = "cpu") -> dict[str, Tensor]:
    """The same at every call, on one kind of device."""
    return {name: _noise(name, shape, device) for name, shape in tensor_shapes(config).items()}


def _noise(name: str, shape: tuple[int, ...], device: str) -> Tensor:
    if name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator, device=device)
    return (values * (shape[-1] ** -0.5 if len(shape) > 1 else 0.02)).to(torch.bfloat16)


def build(options: Options, weights: dict[str, Tensor]) -> Moondream:
    load = LoadOptions(dtype=torch.bfloat16, quantize=options.quantize)
    taken = Weights(weights, weights.__getitem__, Packer("cpu", options.quantize), load.dtype)
    model = Moondream(options.config, taken, pocket_tokenizer().backend_tokenizer, load)
    model.eos_ids = frozenset(
        {model.vocabulary - 1}
    )  # hardly ever said: every caption has the same number of tokens
    return model


def shapes_of(config: MoondreamConfig, itemsize: int, kv_bytes: int) -> tuple[Tower, Text]:
    """What the limits are worked out from."""
    vision, text = config.vision, config.text
    hidden, wide = vision.enc_dim, vision.enc_ff_dim
    tower = Tower(
        hidden=hidden,
        linears=((3 * hidden, hidden), (hidden, hidden), (wide, hidden), (hidden, wide)),
        spans=(None,) * vision.enc_n_layers,
        per_patch=hidden * vision.in_channels * vision.enc_patch_size**2,
        per_token=0,
        merged=1,
    )
    width = text.n_heads * text.head_dim
    layer = (
        text.dim * (2 * width + 2 * text.n_kv_heads * text.head_dim) + 2 * text.dim * text.ff_dim
    )
    return tower, Text(
        text.n_layers, width, text.n_layers * layer, text.vocab_size * text.dim, itemsize, kv_bytes
    )


class Bench:
    """The weights in both forms, and the workloads."""

    def __init__(self, options: Options) -> None:
        self.options = options
        weights = random_weights(options.config)
        self.reference = reference(options, weights) if options.reference else None
        self.model = build(options, weights)
        self._itemsize = 1 if options.quantize == "int8" else 2
        self._tower, self._text = shapes_of(
            options.config, self._itemsize, self.model.kv_shape.bytes_per_token
        )
        self.machines: list[Machine] = []
        self._seed = 0

    def run(self) -> Iterator[Row]:
        for side in SIDES:
            yield from self._captions(side)

    def measure(self) -> Machine:
        patches, quantize = self.options.config.vision.grid**2, self.options.quantize
        work = partial(measure_machine, self._tower, (patches,), torch.bfloat16, "cpu", quantize)
        self.machines.append(in_a_thread(work, self.options.threads))
        return self.machines[-1]

    def _captions(self, side: int) -> Iterator[Row]:
        name = f"{side} pixels, {TOKENS} tokens"
        print(f"{name}; {self.measure()}", file=sys.stderr, flush=True)
        limits = [
            self._limit(self._question(self._picture(side)), batch).seconds(self.machines[-1])
            for batch in (1, IN_FLIGHT)
        ]
        count, alone = (2, 1) if self.options.short else (CAPTIONS, ALONE)
        one, many = (self._engine(side, *run) for run in ((alone, 1), (count, IN_FLIGHT)))
        checks = []
        if self.reference is not None:
            one_by_one = self._one_by_one(side, alone)
            yield Row.of(name, "reference, one by one", one_by_one, limits[0])
            checks.append(
                Check("the reference", many.captions_per_s / one_by_one.captions_per_s, 3)
            )
        seconds = 1 / one.captions_per_s
        quick = [Check("a second", seconds, 2, at_most=True)] if side == SIDES[0] else []
        yield replace(
            Row.of(name, "engine, 1 in flight", one, limits[0], quick),
            note=f"{seconds:.2f} s a caption",
        )
        yield Row.of(name, f"engine, {IN_FLIGHT} in flight", many, limits[1], checks)

    def _engine(self, side: int, count: int, in_flight: int) -> Load:
        limits = EngineLimits(max_batch_size=in_flight, kv_bytes=KV_BYTES)
        engine = AsyncEngine(self.model, limits, max_waiting=64, threads=self.options.threads)
        client = EngineClient(engine)

        def asking(picture: Pixels) -> Ask:
            async def ask() -> Answer:
                answer = Answer(TOKENS)
                await client.follow(await asyncio.to_thread(self._question, picture), answer)
                return answer

            return ask

        async def load() -> Load:
            await asking(self._picture(side))()
            return await drive([asking(self._picture(side)) for _ in range(count)], in_flight)

        try:
            return asyncio.run(load())
        finally:
            engine.stop()

    def _one_by_one(self, side: int, count: int) -> Load:
        caption, pictures = self.reference, [self._picture(side) for _ in range(count + 1)]
        assert caption is not None
        answers: list[Answer] = []

        def ask() -> float:
            caption(pictures[0])
            started = time.perf_counter()
            for picture in pictures[1:]:
                answers.append(Answer(TOKENS))
                caption(picture)
                answers[-1].arrived()
            return time.perf_counter() - started

        return Load(in_a_thread(ask, self.options.threads), tuple(answers))

    def _picture(self, side: int) -> Pixels:
        """One that was not shown before."""
        self._seed += 1
        return pixels_of(photograph(side, side, self._seed))

    def _question(self, picture: Pixels) -> Question:
        request = VisionRequest("", "", Caption(), time.time() + HOUR)
        return Question(self.model.prepare(request, [picture]), TOKENS)

    def _limit(self, question: Question, batch: int) -> Work:
        """The least that a caption takes, where decode steps have ``batch`` rows."""
        vision, tokens = self.options.config.vision, len(question.prompt.token_ids)
        picture = question.prompt.pictures[0]
        assert isinstance(picture.data, Crops)
        crops = self._tower.work(picture.tokens, self._itemsize)
        projection = vision.proj_inner_dim * (2 * vision.enc_dim + vision.proj_out_dim)
        seen = Work(crops.bytes, crops.operations * len(picture.data.pixels))
        projected = Work(projection * self._itemsize, 2.0 * picture.tokens * projection)
        return (
            seen + projected + self._text.prefill(tokens) + self._text.answer(tokens, TOKENS, batch)
        )


def reference(options: Options, weights: dict[str, Tensor]) -> Callable[[Pixels], object]:
    """Captions a picture by the reference implementation."""
    sys.path.insert(0, str(options.reference))
    from moondream.torch import config as upstream_config
    from moondream.torch import moondream as upstream

    class NoTokenizer:
        @staticmethod
        def from_pretrained(name: str) -> Tokenizer:
            tokenizer: Tokenizer = pocket_tokenizer().backend_tokenizer
            return tokenizer

    upstream.Tokenizer = NoTokenizer
    given: dict[str, Any] = options.config.to_dict()
    given.pop("tokenizer")
    config = upstream_config.MoondreamConfig.from_dict(given)
    model = upstream.MoondreamModel(replace(config, tokenizer=replace(config.tokenizer, eos_id=-1)))
    model.load_state_dict(weights, strict=False)
    settings = {"temperature": 0, "max_tokens": TOKENS}

    def caption(picture: Pixels) -> object:
        encoded = model.encode_image(Image.fromarray(picture))
        return model.caption(encoded, settings=settings)["caption"]

    return caption


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.moondream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reference", type=Path, help="a checkout of vikhyat/moondream")
    parser.add_argument("--scale", choices=CONFIGS, default="full")
    parser.add_argument("--quantize", choices=("int8",), default=None)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--short", action="store_true", help="few requests: shows that everything runs"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args(arguments)
    options = Options(given.scale, given.quantize, given.threads, given.short, given.reference)
    torch.set_num_threads(1)  # whatever is measured says itself with how many
    bench = Bench(options)
    rows = []
    for row in bench.run():
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    title = (
        f"moondream ({options.scale}), {options.quantize or 'bfloat16'}, {options.threads} threads"
    )
    print(
        "\n".join([f"{title}; {'; '.join(map(str, bench.machines))}", "", HEADER, *map(str, rows)])
    )
    if given.json:
        write_json(given.json, replace(options, reference=None), bench.machines, rows)
    return 0 if all(check.ok for row in rows for check in row.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
