"""Measure Moondream on the engine against the machine's limits and the reference implementation, in
one run.

``python -m benchmarks.moondream --reference FOLDER`` builds random bfloat16 weights in the shape of
Moondream 0.5B. It captions pictures of 378 and 1024 pixels in 50 tokens, from pixels to the last
token: with the engine, one request at a time and eight in flight, and with the reference
implementation, one by one. FOLDER is a checkout of https://github.com/vikhyat/moondream, which is
not part of this repository; without it, the reference's rows are left out.

The whole of a 378-pixel picture and its one crop are the same pixels. The engine encodes them once.
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

from benchmarks.engine.bench import HOUR, EngineClient, decode_jpeg
from benchmarks.engine.generate import Request
from benchmarks.engine.limits import (
    Machine,
    TextShape,
    VisionShape,
    Work,
    measure_machine,
    run_in_thread,
)
from benchmarks.engine.load import LoadResult, Send, Timeline, drive
from benchmarks.engine.report import HEADER, Check, Row, write_json
from benchmarks.photograph import draw_photograph
from models.linear import Quantize, WeightPacker
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

TOKENS = 50
"""Length of every caption."""
IN_FLIGHT = 8
CAPTIONS = 24
"""Captions of a load with ``IN_FLIGHT`` requests at a time."""
CAPTIONS_ALONE = 4
"""Captions of a load with one request at a time."""
SIDES = (378, 1024)
"""Sides of the pictures, in pixels."""
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
"""Configurations by scale. ``full`` is upstream's ``config_md05.json``, with the token ids of
today's checkpoints; ``tiny`` is for smoke tests."""


@dataclass(frozen=True)
class Options:
    """Command-line options of the benchmark."""

    scale: str
    quantize: Quantize | None
    threads: int
    short: bool
    """Few requests: a smoke test whose figures mean nothing."""
    reference: Path | None
    """Checkout of the reference implementation."""

    @property
    def config(self) -> MoondreamConfig:
        return CONFIGS[self.scale]


def random_weights(config: MoondreamConfig, device: str = "cpu") -> dict[str, Tensor]:
    """Draw the weights on the device: every call on the same kind of device gives the same ones."""
    return {
        name: _random_tensor(name, shape, device) for name, shape in tensor_shapes(config).items()
    }


def _random_tensor(name: str, shape: tuple[int, ...], device: str) -> Tensor:
    if name.endswith(("ln.weight", "ln1.weight", "ln2.weight")):
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator, device=device)
    scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.02
    return (values * scale).to(torch.bfloat16)


def build(options: Options, tensors: dict[str, Tensor]) -> Moondream:
    load_options = LoadOptions(dtype=torch.bfloat16, quantize=options.quantize)
    packer = WeightPacker("cpu", options.quantize)
    weights = Weights(tensors, tensors.__getitem__, packer, load_options.dtype)
    tokenizer = pocket_tokenizer().backend_tokenizer
    model = Moondream(options.config, weights, tokenizer, load_options)
    # A token that is hardly ever sampled: all captions have the same number of tokens.
    model.eos_ids = frozenset({model.vocab_size - 1})
    return model


def compute_shapes(
    config: MoondreamConfig, itemsize: int, kv_bytes: int
) -> tuple[VisionShape, TextShape]:
    """Return the shapes that the limits are computed from.

    ``itemsize`` is the bytes of a weight, ``kv_bytes`` the bytes of a token in the KV cache.
    """
    vision = config.vision
    text = config.text
    hidden = vision.enc_dim
    wide = vision.enc_ff_dim
    vision_shape = VisionShape(
        hidden=hidden,
        linears=((3 * hidden, hidden), (hidden, hidden), (wide, hidden), (hidden, wide)),
        spans=(None,) * vision.enc_n_layers,
        patch_weights=hidden * vision.in_channels * vision.enc_patch_size**2,
        projector_weights=0,
        patches_per_token=1,
    )
    width = text.n_heads * text.head_dim
    attention = text.dim * (2 * width + 2 * text.n_kv_heads * text.head_dim)
    layer = attention + 2 * text.dim * text.ff_dim
    head = text.vocab_size * text.dim
    text_shape = TextShape(
        text.n_layers, width, text.n_layers * layer, head, itemsize, kv_bytes, itemsize
    )
    return vision_shape, text_shape


def projector_weights(config: MoondreamConfig) -> int:
    """Return the number of weights of the projector, which reads the stitched crops."""
    vision = config.vision
    return vision.proj_inner_dim * (2 * vision.enc_dim + vision.proj_out_dim)


class Bench:
    """The model on the engine and in the reference implementation, and the workloads."""

    def __init__(self, options: Options) -> None:
        self.options = options
        weights = random_weights(options.config)
        self.caption_by_reference = load_reference(options, weights) if options.reference else None
        self.model = build(options, weights)
        self._itemsize = 1 if options.quantize == "int8" else 2
        self._vision, self._text = compute_shapes(
            options.config, self._itemsize, self.model.kv_spec.bytes_per_token
        )
        self.machines: list[Machine] = []
        """All measurements of the machine, the newest last."""
        self._seed = 0

    def run(self) -> Iterator[Row]:
        for side in SIDES:
            yield from self._measure_captions(side)

    def measure(self) -> Machine:
        """Measure the machine as it is now."""
        patches = self.options.config.vision.grid**2
        quantize = self.options.quantize
        work = partial(measure_machine, self._vision, (patches,), torch.bfloat16, "cpu", quantize)
        self.machines.append(run_in_thread(work, self.options.threads))
        return self.machines[-1]

    def _measure_captions(self, side: int) -> Iterator[Row]:
        name = f"{side} pixels, {TOKENS} tokens"
        print(f"{name}; {self.measure()}", file=sys.stderr, flush=True)
        limit_alone = self._limit_seconds(side, 1)
        limit_batched = self._limit_seconds(side, IN_FLIGHT)
        count = 2 if self.options.short else CAPTIONS
        count_alone = 1 if self.options.short else CAPTIONS_ALONE
        alone = self._run_engine(side, count_alone, 1)
        batched = self._run_engine(side, count, IN_FLIGHT)
        checks = []
        if self.caption_by_reference is not None:
            baseline = self._run_reference(side, count_alone)
            yield Row.from_load(name, "reference, one by one", baseline, limit_alone)
            speedup = batched.captions_per_s / baseline.captions_per_s
            checks.append(Check("the reference", speedup, 3))
        seconds = 1 / alone.captions_per_s
        latency = [Check("a second", seconds, 2, at_most=True)] if side == SIDES[0] else []
        yield replace(
            Row.from_load(name, "engine, 1 in flight", alone, limit_alone, latency),
            note=f"{seconds:.2f} s a caption",
        )
        yield Row.from_load(name, f"engine, {IN_FLIGHT} in flight", batched, limit_batched, checks)

    def _run_engine(self, side: int, count: int, in_flight: int) -> LoadResult:
        limits = EngineLimits(max_batch_size=in_flight, kv_bytes=KV_BYTES)
        engine = AsyncEngine(self.model, limits, max_waiting=64, num_threads=self.options.threads)
        client = EngineClient(engine)

        def make_sender(picture: Pixels) -> Send:
            async def send() -> Timeline:
                timeline = Timeline(TOKENS)
                request = await asyncio.to_thread(self._make_request, picture)
                await client.follow(request, timeline)
                return timeline

            return send

        async def warm_up_and_drive() -> LoadResult:
            await make_sender(self._make_picture(side))()
            sends = [make_sender(self._make_picture(side)) for _ in range(count)]
            return await drive(sends, in_flight)

        try:
            return asyncio.run(warm_up_and_drive())
        finally:
            engine.stop()

    def _run_reference(self, side: int, count: int) -> LoadResult:
        caption = self.caption_by_reference
        assert caption is not None
        warm_up, *pictures = [self._make_picture(side) for _ in range(count + 1)]
        timelines: list[Timeline] = []

        def caption_all() -> float:
            caption(warm_up)
            started = time.perf_counter()
            for picture in pictures:
                timelines.append(Timeline(TOKENS))
                caption(picture)
                timelines[-1].record_piece()
            return time.perf_counter() - started

        seconds = run_in_thread(caption_all, self.options.threads)
        return LoadResult(seconds, tuple(timelines))

    def _make_picture(self, side: int) -> Pixels:
        """Return a new picture."""
        self._seed += 1
        return decode_jpeg(draw_photograph(side, side, self._seed))

    def _make_request(self, picture: Pixels) -> Request:
        request = VisionRequest("", "", Caption(), time.time() + HOUR)
        return Request(self.model.prepare(request, [picture]), TOKENS)

    def _limit_seconds(self, side: int, batch: int) -> float:
        """Return the least seconds of a caption, if decode steps have ``batch`` rows."""
        prompt = self._make_request(self._make_picture(side)).prompt
        tokens = len(prompt.token_ids)
        picture = prompt.pictures[0]
        assert isinstance(picture.data, Crops)
        crop = self._vision.work(picture.num_tokens, self._itemsize)
        crops = Work(crop.bytes, crop.operations * len(picture.data.pixels))
        weights = projector_weights(self.options.config)
        projection = Work(weights * self._itemsize, 2.0 * picture.num_tokens * weights)
        prefill = self._text.prefill(tokens)
        answer = self._text.answer(tokens, TOKENS, batch)
        return (crops + projection + prefill + answer).seconds(self.machines[-1])


def load_reference(options: Options, weights: dict[str, Tensor]) -> Callable[[Pixels], object]:
    """Return a function that captions a picture with the reference implementation."""
    sys.path.insert(0, str(options.reference))
    from moondream.torch import config as upstream_config
    from moondream.torch import moondream as upstream

    class PocketTokenizer:
        """Replaces upstream's tokenizer, which would be downloaded."""

        @staticmethod
        def from_pretrained(name: str) -> Tokenizer:
            tokenizer: Tokenizer = pocket_tokenizer().backend_tokenizer
            return tokenizer

    upstream.Tokenizer = PocketTokenizer
    fields: dict[str, Any] = options.config.to_dict()
    fields.pop("tokenizer")
    config = upstream_config.MoondreamConfig.from_dict(fields)
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
    parser.add_argument("--short", action="store_true", help="few requests: a smoke test")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(arguments)
    options = Options(args.scale, args.quantize, args.threads, args.short, args.reference)
    torch.set_num_threads(1)  # each measurement sets its own number of threads
    bench = Bench(options)
    rows = []
    for row in bench.run():
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    precision = options.quantize or "bfloat16"
    title = f"moondream ({options.scale}), {precision}, {options.threads} threads"
    machines = "; ".join(map(str, bench.machines))
    print("\n".join([f"{title}; {machines}", "", HEADER, *map(str, rows)]))
    if args.json:
        write_json(args.json, replace(options, reference=None), bench.machines, rows)
    return 0 if all(check.ok for row in rows for check in row.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
