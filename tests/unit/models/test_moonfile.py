"""``.mf`` files, written with the nodes of PyTorch's exporter and ONNX Runtime's quantization."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image

from models.linear import WeightPacker
from models.moondream import model as moondream
from models.moondream.config import (
    MoondreamConfig,
    RegionConfig,
    TextConfig,
    VisionConfig,
)
from models.moondream.crops import crop, stretched_size
from models.moondream.model import Moondream, tensor_shapes
from models.moondream.moonfile import read_moonfile
from models.moondream.onnx_weights import OnnxGraph
from models.moondream.weights import CheckpointMismatch, Weights
from models.verify.reference import Unverifiable
from models.verify.run import verify
from raylens.core.errors import UnsupportedTask
from raylens.core.types import REASONING, Caption, Detect, Length, Point, Query
from testing.checkpoints import MOONDREAM_TOKENS, random_tensors
from testing.exactness import prepare_sequences, request
from testing.moonfile import pack, write_moonfile
from testing.pictures import random_pixels
from testing.recorded_moondream import answer, run
from testing.tokenizers import byte_tokenizer

Array = NDArray[np.float32]
CAPTIONS = {length: MOONDREAM_TOKENS.caption[length] for length in ("short", "normal")}
CONFIG = MoondreamConfig(
    TextConfig(dim=128, ff_dim=160, n_layers=2, vocab_size=300, n_heads=2, n_kv_heads=2),
    VisionConfig(
        enc_dim=144,
        enc_n_layers=2,
        enc_ff_dim=56,
        enc_n_heads=2,
        proj_out_dim=128,
        crop_size=70,
        overlap_margin=0,
        proj_inner_dim=64,
        halves=True,
    ),
    RegionConfig(
        dim=128,
        coord_feat_dim=8,
        coord_out_dim=64,
        size_feat_dim=16,
        size_out_dim=96,
        inner_dim=80,
        linear_sizes=True,
    ),
    replace(MOONDREAM_TOKENS, thinking_id=None, caption=CAPTIONS),
)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Array]:
    return random_tensors(tensor_shapes(CONFIG))


Write = Callable[..., tuple[Path, dict[str, Array]]]


@pytest.fixture
def write(tmp_path: Path, tensors: dict[str, Array]) -> Write:
    def write(**options: Any) -> tuple[Path, dict[str, Array]]:
        data, rounded = write_moonfile(CONFIG, tensors, byte_tokenizer(), **options)
        path = tmp_path / "moondream-0_5b-int8.mf"
        path.write_bytes(data)
        return path, rounded

    return write


@pytest.mark.parametrize("per_column", [False, True])
def test_every_tensor_is_found_and_scaled(write: Write, per_column: bool) -> None:
    path, rounded = write(per_column=per_column)
    moonfile = read_moonfile(path)
    for name, expected in rounded.items():
        np.testing.assert_allclose(moonfile.tensor(name).numpy(), expected, rtol=1e-6, err_msg=name)


def test_the_configuration_is_read_from_the_graphs(write: Write) -> None:
    assert read_moonfile(write()[0]).config == CONFIG


def test_answers_are_those_of_the_weights(write: Write) -> None:
    path, rounded = write()
    read = {name: torch.from_numpy(values) for name, values in rounded.items()}
    weights = Weights(read, read.__getitem__, WeightPacker("cpu", None), torch.float32)
    expected = Moondream(CONFIG, weights, byte_tokenizer())
    loaded = moondream.load(str(path))
    pictures = [random_pixels(90, 200), random_pixels(50, 60)]
    tasks = [Caption(), Caption(Length.SHORT), Query("Why?"), Detect("cat"), Point("cat")]
    answers = []
    for model in (loaded, expected):
        waiting = [
            prepare_sequences(model, request(task, max_tokens=6), [picture])
            for task in tasks
            for picture in pictures
        ]
        run(model, waiting)
        answers.append([answer(model, sequence) for (sequence,) in waiting])
    assert answers[0] == answers[1]
    assert len({str(text) for text in answers[0]}) > len(tasks)


def test_a_compressed_file_is_read(write: Write) -> None:
    path, _ = write()
    compressed = path.with_suffix(".mf.gz")
    data = gzip.compress(path.read_bytes(), 1)
    compressed.write_bytes(data)
    assert moondream.load(str(compressed)).config == CONFIG
    for damaged in (data[:-100], data[:100] + b"x" * 100 + data[200:], b"no gzip"):
        compressed.write_bytes(damaged)
        with pytest.raises(CheckpointMismatch, match="incomplete or damaged"):
            moondream.load(str(compressed))


def test_it_neither_reasons_nor_writes_long_captions(write: Write) -> None:
    model = moondream.load(str(write()[0]))
    assert REASONING not in model.tasks
    assert Detect.name in model.tasks
    with pytest.raises(UnsupportedTask, match="length: long is not supported"):
        model.prepare(request(Caption(Length.LONG)), [random_pixels(20, 20)])
    # The prompt ends with the template's suffix, once.
    prompt = model.prepare(request(Query("?")), [])
    assert prompt.token_ids[-2:] == (ord("?"), *CONFIG.tokenizer.query.suffix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"ZIP!" + data[4:], "not a Moondream file"),
        (lambda data: data[:4] + b"\x02" + data[5:], "version b'\\\\x02'; expected 1"),
        (lambda data: data[:-7], "the file is incomplete"),
        (lambda data: data[:7], "the file is incomplete"),
        (lambda data: data[:300], "the file is incomplete"),
        (lambda data: data[:9] + b"\xff" * 300, "the file is incomplete"),
        (lambda data: data[:5], "vision_projection.onnx: missing"),
        (lambda data: data.replace(b"/text_encoder", b"/next_encoder"), "text_encoder.onnx"),
        (lambda data: data.replace(b"eos", b"EOS"), "config.json: 'eos' is missing"),
        (lambda data: data.replace(b"detect", b"defect"), "config.json: 'detect' is missing"),
        (
            lambda data: data.replace(b"text.post_ln.bias", b"text.post_ln.base"),
            "tensor text.post_ln.bias: missing in text_decoder.onnx",
        ),
    ],
)
def test_a_damaged_file_is_refused(
    write: Write, change: Callable[[bytes], bytes], message: str
) -> None:
    path, _ = write()
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointMismatch, match=message):
        moondream.load(str(path))


def test_an_entry_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mf"
    path.write_bytes(pack({"vision_projection.onnx": b"\xff\xff"}))
    with pytest.raises(CheckpointMismatch, match=r"vision_projection\.onnx: not an ONNX model"):
        moondream.load(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mf"):
        moondream.load("/nowhere.mf")


class TestOtherGraphs:
    """Forms of a layer that other exporters and optimizers write."""

    weight = np.arange(12, dtype=np.float32).reshape(3, 4)

    def read(self, nodes: list[Any], **initializers: Any) -> NDArray[Any]:
        initializers["a.bias"] = np.zeros(3, np.float32)
        tensors = [numpy_helper.from_array(value, name) for name, value in initializers.items()]
        graph = helper.make_graph(nodes, "g", [], [], tensors)
        parsed = OnnxGraph.parse(helper.make_model(graph).SerializeToString(), "g")
        return parsed.tensor("x.a.weight").numpy()

    def test_a_gemm(self) -> None:
        nodes = [helper.make_node("Gemm", ["x", "W", "a.bias"], ["y"], transB=1)]
        np.testing.assert_array_equal(self.read(nodes, W=self.weight), self.weight)
        nodes = [helper.make_node("Gemm", ["x", "W", "a.bias"], ["y"])]
        np.testing.assert_array_equal(self.read(nodes, W=self.weight.T.copy()), self.weight)

    def test_a_transposed_weight(self) -> None:
        nodes = [
            helper.make_node("Transpose", ["W"], ["W_t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "W_t"], ["xw"]),
            helper.make_node("Add", ["xw", "a.bias"], ["y"]),
        ]
        np.testing.assert_array_equal(self.read(nodes, W=self.weight), self.weight)

    def test_a_weight_that_is_only_stored_as_bytes(self) -> None:
        nodes = [
            helper.make_node("DequantizeLinear", ["W", "s", "z"], ["W_f"], axis=1),
            helper.make_node("MatMul", ["x", "W_f"], ["xw"]),
            helper.make_node("Add", ["xw", "a.bias"], ["y"]),
        ]
        scale = np.array([1, 2, 4], np.float32)
        read = self.read(
            nodes, W=self.weight.T.astype(np.uint8) + 3, s=scale, z=np.full(3, 3, np.uint8)
        )
        np.testing.assert_array_equal(read, self.weight * scale[:, None])

    def test_half_precision_and_a_name_that_was_kept(self) -> None:
        read = self.read([], **{"model.a.weight": self.weight.astype(np.float16)})
        np.testing.assert_array_equal(read, self.weight)

    def test_a_copy_of_an_equal_tensor(self) -> None:
        nodes = [helper.make_node("Identity", ["other"], ["model.a.weight"])]
        np.testing.assert_array_equal(self.read(nodes, other=self.weight), self.weight)

    def test_a_layer_that_another_node_has_absorbed(self) -> None:
        nodes = [helper.make_node("Attention", ["x", "W", "a.bias"], ["y"])]
        with pytest.raises(CheckpointMismatch, match=r"tensor x\.a\.weight: missing in g\.onnx"):
            self.read(nodes, W=self.weight)

    def test_a_norm_is_no_layers_weight(self) -> None:
        with pytest.raises(CheckpointMismatch):
            self.read([], **{"post_ln.weight": np.ones(4, np.float32)})


@pytest.mark.parametrize(
    ("width", "height", "tiling"),
    [(97, 60, (1, 1)), (98, 50, (1, 2)), (50, 98, (2, 1)), (100, 99, (2, 2)), (300, 201, (2, 2))],
)
def test_large_pictures_are_cut_into_halves(
    width: int, height: int, tiling: tuple[int, int]
) -> None:
    picture = random_pixels(width, height)
    crops = crop(picture, CONFIG.vision)
    assert crops.tiling == tiling
    rows, columns = tiling
    assert stretched_size(width, height, CONFIG.vision) == (70 * columns, 70 * rows)
    whole = Image.fromarray(picture).resize((70, 70), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crops.pixels[0], whole)
    if tiling == (1, 1):
        assert len(crops.pixels) == 1
        return
    # The last part ends before the rows and columns that are left over.
    last = picture[
        (rows - 1) * (height // rows) : rows * (height // rows),
        (columns - 1) * (width // columns) : columns * (width // columns),
    ]
    expected = Image.fromarray(last).resize((70, 70), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crops.pixels[-1], expected)
    assert len(crops.pixels) == 1 + rows * columns


def test_verify_loads_it_strictly_and_has_no_reference(write: Write, tmp_path: Path) -> None:
    path = str(write()[0])
    report = verify(path)
    assert {line.is_same for line in report.lines} == {None}
    with pytest.raises(Unverifiable, match=r"the reference doesn't read \.mf files"):
        verify(path, reference=tmp_path)
    with pytest.raises(Unverifiable, match="no such file"):
        verify("/nowhere.mf")


def test_bins_of_sizes_are_equally_wide(write: Write) -> None:
    model = moondream.load(str(write()[0]))
    sizes = model._regions.bins_to_sizes(torch.tensor([0.0, 12.0, 48.0]))
    assert sizes.tolist() == [0.0, 0.25, 1.0]
