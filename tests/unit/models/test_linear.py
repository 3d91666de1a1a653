"""Every form of a linear layer gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.linear import Packer
from models.operations import attention, by_rows, turn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_layers_that_read_the_same_input_are_one_product(
    dtype: torch.dtype, rows: int, bias: bool, activation: str
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(96, width, bias=bias, dtype=dtype) for width in (64, 32)]
    states = torch.randn(2, rows, 96, dtype=dtype)
    with torch.inference_mode():
        expected = torch.cat([layer(states) for layer in layers], -1)
        if activation == "gelu":
            expected = nn.functional.gelu(expected, approximate="tanh")
        layer = Packer().linear(*layers, activation=activation)
        made, more = layer(states), layer(states, expected)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(made, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(more, 2 * expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_within_a_percent_and_a_row_does_not_depend_on_its_company(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 256, dtype=dtype), torch.randn(64, dtype=dtype)
    states = torch.randn(8, 256, dtype=dtype) * torch.tensor([0.01, 1, 100, 1, 1, 1, 1, 1], dtype=dtype)[:, None]
    made = Packer(quantize="int8").weight(weight, bias)
    with torch.inference_mode():
        together = made(states)
        expected = nn.functional.linear(states.float(), weight.float(), bias.float())
        error = (together.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(error.max()) < 0.02
        for row in range(8):
            assert torch.equal(made(states[row : row + 1])[0], together[row])


def test_int8_is_refused_where_there_is_no_such_product() -> None:
    with pytest.raises(ValueError, match="quantize: int8 needs a CPU"):
        Packer("meta", "int8").weight(torch.empty(8, 8))


@pytest.mark.parametrize("rows", [1, 255, 256, 700])
def test_adding_by_rows_is_adding(rows: int) -> None:
    states, inputs = torch.randn(rows, 8), torch.randn(rows, 8)
    expected = states + inputs * 2
    by_rows(lambda given, part: part + given * 2, inputs, states)
    torch.testing.assert_close(states, expected)


def test_adding_to_what_is_read_reads_it_before() -> None:
    states = torch.randn(600, 8)
    expected = states + states.square()
    by_rows(lambda given, part: part + given.square(), states, states)
    torch.testing.assert_close(states, expected)


def test_turning_by_a_right_angle_swaps_the_halves() -> None:
    states = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.zeros(1, 1, 4), torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]])
    torch.testing.assert_close(turn(states, cos, sin), torch.tensor([[[-3.0, -4.0, 1.0, 2.0]]]))


def test_attention_mixes_within_a_picture_only() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 5, 3, 4) for _ in range(3)]
    mixed = attention(*parts)
    assert mixed.shape == (2, 5, 12)
    torch.testing.assert_close(mixed[1:], attention(*(part[1:] for part in parts)))
