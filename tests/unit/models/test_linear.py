"""Every form of a linear layer computes what ``nn.Linear`` computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.cpu.library import host_library
from models.linear import WeightPacker


@pytest.mark.parametrize("uses_native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_layers_that_read_the_same_input_are_one_product(
    uses_native: bool, dtype: torch.dtype, rows: int, bias: bool, activation: str
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(96, width, bias=bias, dtype=dtype) for width in (64, 32)]
    states = torch.randn(2, rows, 96, dtype=dtype)
    with torch.inference_mode():
        expected = torch.cat([layer(states) for layer in layers], -1)
        if activation == "gelu":
            expected = nn.functional.gelu(expected, approximate="tanh")
        packer = WeightPacker(uses_native=uses_native)
        packed = packer.pack_layers(*layers, activation=activation)
        outputs = packed(states)
        with_residual = packed(states, expected)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(outputs, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(with_residual, 2 * expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("uses_native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_within_two_percent_and_a_row_does_not_depend_on_the_others(
    uses_native: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 256, dtype=dtype)
    bias = torch.randn(64, dtype=dtype)
    row_scales = torch.tensor([0.01, 1, 100, 1, 1, 1, 1, 1], dtype=dtype)
    states = torch.randn(8, 256, dtype=dtype) * row_scales[:, None]
    packed = WeightPacker(quantize="int8", uses_native=uses_native).pack_weight(weight, bias)
    with torch.inference_mode():
        outputs = packed(states)
        expected = nn.functional.linear(states.float(), weight.float(), bias.float())
        error = (outputs.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(error.max()) < 0.02
        for row in range(8):
            assert torch.equal(packed(states[row : row + 1])[0], outputs[row])


def test_int8_is_refused_on_a_device_without_vnni() -> None:
    with pytest.raises(ValueError, match="quantize: int8 needs a CPU"):
        WeightPacker("meta", "int8").pack_weight(torch.empty(8, 8))


@pytest.mark.skipif(host_library() is None, reason="no native kernels")
def test_int4_rounds_only_layers_that_allow_it_to_four_bits() -> None:
    torch.manual_seed(0)
    weight, states = torch.randn(64, 256), torch.randn(8, 256)
    packer = WeightPacker(quantize="int4")
    expected = nn.functional.linear(states, weight)

    def error(allows_int4: bool) -> float:
        outputs = packer.pack_weight(weight, allows_int4=allows_int4)(states)
        return float((outputs - expected).norm() / expected.norm())

    assert error(allows_int4=False) < 0.02
    assert 0.02 < error(allows_int4=True) < 0.15


def test_int4_is_refused_without_native_kernels() -> None:
    packer = WeightPacker(quantize="int4", uses_native=False)
    with pytest.raises(ValueError, match="quantize: int4 needs a CPU and a C compiler"):
        packer.pack_weight(torch.randn(8, 8), allows_int4=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_consumed_modules_are_empty_and_the_packed_layer_works(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(96, 64, dtype=dtype) for _ in range(2)]
    states = torch.randn(3, 96, dtype=dtype)
    with torch.inference_mode():
        expected = WeightPacker().pack_layers(*layers)(states)
        outputs = WeightPacker(free_modules=True).pack_layers(*layers)(states)
    assert torch.equal(outputs, expected)
    assert [layer.weight.nbytes for layer in layers] == [0, 0]
