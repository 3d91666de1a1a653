"""Linear layers in C, in every form and instruction set, against float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.cpu.library import Library
from models.cpu.linear import NativeLinear
from models.cpu.packing import GROUP


@dataclass(frozen=True)
class Form:
    """How a weight is packed."""

    tolerance: float
    """The relative error that results may have on normal values."""
    dtype: torch.dtype = torch.float32
    quantize: str | None = None
    group: int = GROUP


FORMS = {
    "float32": Form(1e-6),
    "bfloat16": Form(5e-3, torch.bfloat16),
    "int8": Form(0.015, quantize="int8"),
    "int8 of bfloat16": Form(0.015, torch.bfloat16, "int8"),
    "int4 in groups of 64": Form(0.12, quantize="int4", group=64),
    "int4 in groups of 32": Form(0.11, torch.bfloat16, "int4", 32),
}
SHAPES = [(64, 256), (37, 100), (1, 1), (16, 588), (200, 65)]
"""Outputs and inputs."""


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def make(
    library: Library, form: str, weight: Tensor, bias: Tensor | None = None, act: str = "none"
) -> NativeLinear:
    packed = FORMS[form]
    return NativeLinear(library, weight.to(packed.dtype), bias, act, packed.quantize, packed.group)


def exact(states: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "none") -> Tensor:
    product = states.double() @ weight.double().T
    if bias is not None:
        product += bias.double()
    return F.gelu(product, approximate="tanh") if act == "gelu" else product


def error(outputs: Tensor, expected: Tensor) -> float:
    return float((outputs - expected).norm() / expected.norm())


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("act", ["none", "gelu"])
def test_products_are_those_of_float64(
    library: Library, form: str, outputs: int, inputs: int, act: str
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    states, residual = torch.randn(33, inputs), torch.randn(33, outputs)
    layer = make(library, form, weight, bias, act)
    expected = exact(states, weight, bias, act)
    tolerance = FORMS[form].tolerance
    assert error(layer(states), expected) < tolerance
    assert error(layer(states, residual), expected + residual) < tolerance
    in_bfloat16 = layer(states.bfloat16(), residual.bfloat16())
    assert in_bfloat16.dtype is torch.bfloat16
    assert error(in_bfloat16.float(), expected + residual) < tolerance + 5e-3


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_row_does_not_depend_on_the_others(
    library: Library, form: str, outputs: int, inputs: int
) -> None:
    torch.manual_seed(0)
    layer = make(library, form, torch.randn(outputs, inputs), torch.randn(outputs), "gelu")
    states = torch.randn(40, inputs) * torch.logspace(-3, 3, 40)[:, None]
    together = layer(states)
    for count in range(1, 17):
        for first in (0, 7, 40 - count):
            rows = slice(first, first + count)
            assert torch.equal(layer(states[rows]), together[rows])


def test_weights_may_lie_in_memory_in_any_order(library: Library, form: str) -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(1000, 300), torch.randn(3, 300)
    transposed = weight.T.contiguous().T
    assert not transposed.is_contiguous()
    expected = make(library, form, weight)(states)
    assert torch.equal(make(library, form, transposed)(states), expected)


def test_threads_do_not_change_a_result(library: Library, form: str) -> None:
    torch.manual_seed(0)
    layer = make(library, form, torch.randn(130, 192))
    states = torch.randn(9, 192)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(layer(states))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_zeros_and_extreme_inputs(library: Library, form: str, scale: float) -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(20, 70), torch.randn(5, 70) * scale
    outputs = make(library, form, weight)(states)
    expected = exact(states, weight)
    assert float((outputs - expected).norm()) <= FORMS[form].tolerance * float(expected.norm())


def test_the_largest_bytes_of_either_sign_do_not_saturate(library: Library, form: str) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(512)
    weight = torch.stack([signs, -signs, signs.abs(), -signs.abs()])
    states = torch.stack([signs, -signs, signs.abs()])
    outputs = make(library, form, weight)(states)
    # Four bits have no 8: the value opposite to the farthest one is 7/8 of it.
    tolerance = 0.07 if form.startswith("int4") else 0.01
    torch.testing.assert_close(
        outputs.double(), exact(states, weight), atol=1024 * tolerance, rtol=0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_spoils_only_itself(
    library: Library, form: str, bad: float
) -> None:
    torch.manual_seed(0)
    layer = make(library, form, torch.randn(20, 70))
    states = torch.randn(5, 70)
    expected = layer(states)
    states[2, 69] = bad
    outputs = layer(states)
    assert not outputs[2].isfinite().any()
    others = [0, 1, 3, 4]
    assert torch.equal(outputs[others], expected[others])


def test_a_weight_that_is_not_finite_spoils_its_outputs_only(library: Library, form: str) -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(20, 70), torch.randn(3, 70)
    expected = make(library, form, weight)(states)
    for bad in (float("nan"), float("inf"), -float("inf")):
        weight[17, 69] = bad
        outputs = make(library, form, weight)(states)
        assert not outputs[:, 17].isfinite().any()
        others = torch.arange(20) != 17
        assert torch.equal(outputs[:, others], expected[:, others])


def test_zero_weights_give_zeros(library: Library, form: str) -> None:
    assert not make(library, form, torch.zeros(20, 70))(torch.randn(3, 70)).any()


def test_gelu_of_large_values(library: Library) -> None:
    values = torch.tensor([-1e30, -100.0, -5.0, 0.0, 5.0, 100.0, 1e30])
    layer = make(library, "float32", torch.eye(7), act="gelu")
    expected = F.gelu(values.double(), approximate="tanh")
    torch.testing.assert_close(layer(values).double(), expected, atol=1e-6, rtol=1e-6)


def test_no_rows(library: Library, form: str) -> None:
    assert make(library, form, torch.randn(20, 70))(torch.randn(0, 70)).shape == (0, 20)


def test_other_inputs_are_refused(library: Library) -> None:
    layer = make(library, "float32", torch.randn(20, 70))
    with pytest.raises(ValueError, match="a layer of 70 inputs"):
        layer(torch.randn(3, 71))
    with pytest.raises(ValueError, match="a layer of 70 inputs"):
        layer(torch.randn(3, 70).double())
