"""Every form of a linear layer gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.linear import Packer


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
def test_int8_is_within_a_percent_and_a_row_does_not_depend_on_its_company(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 256, dtype=dtype), torch.randn(64, dtype=dtype)
    states = (
        torch.randn(8, 256, dtype=dtype)
        * torch.tensor([0.01, 1, 100, 1, 1, 1, 1, 1], dtype=dtype)[:, None]
    )
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_consumed_layer_gives_up_its_weight_and_its_form_works_on(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(96, 64, dtype=dtype) for _ in range(2)]
    states = torch.randn(3, 96, dtype=dtype)
    with torch.inference_mode():
        expected = Packer().linear(*layers)(states)
        made = Packer(consume=True).linear(*layers)(states)
    assert torch.equal(made, expected)
    assert [layer.weight.nbytes for layer in layers] == [0, 0]
