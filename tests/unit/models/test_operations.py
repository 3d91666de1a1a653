from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models import operations
from models.operations import apply_in_row_blocks, apply_rope, attention


@pytest.mark.parametrize("rows", [1, 255, 256, 700])
def test_blocks_of_rows_compute_the_same_as_all_rows_together(rows: int) -> None:
    states, inputs = torch.randn(rows, 8), torch.randn(rows, 8)
    expected = states + inputs * 2
    apply_in_row_blocks(lambda inputs, states: states + inputs * 2, inputs, states)
    torch.testing.assert_close(states, expected)


def test_rows_that_are_input_and_output_are_read_before_they_are_written() -> None:
    states = torch.randn(600, 8)
    expected = states + states.square()
    apply_in_row_blocks(lambda inputs, states: states + inputs.square(), states, states)
    torch.testing.assert_close(states, expected)


def test_rope_by_a_right_angle_swaps_the_halves() -> None:
    states = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.zeros(1, 1, 4), torch.tensor([[[-1.0, -1.0, 1.0, 1.0]]])
    torch.testing.assert_close(
        apply_rope(states, cos, sin), torch.tensor([[[-3.0, -4.0, 1.0, 2.0]]])
    )


@pytest.mark.parametrize("products", [True, False], ids=["products", "fused"])
@pytest.mark.parametrize(
    ("pictures", "heads", "queries", "keys"),
    [(2, 3, 5, 5), (1, 5, 3, 40), (8, 5, 3, 1100), (3, 4, 300, 300), (1, 2, 1500, 1500)],
)
def test_attention_equals_its_formula_by_products_and_by_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch,
    products: bool,
    pictures: int,
    heads: int,
    queries: int,
    keys: int,
) -> None:
    monkeypatch.setattr(operations, "_has_fast_products", lambda device, dtype: products)
    monkeypatch.setattr(operations, "_MIN_SCORES", 0)
    torch.manual_seed(0)
    query = torch.randn(pictures, heads, queries, 16)
    key, value = torch.randn(2, pictures, heads, keys, 16)
    mask = torch.zeros(pictures, 1, 1, keys)
    mask[0, ..., keys // 2 :] = -torch.inf
    for bias in (None, mask):
        torch.testing.assert_close(
            attention(query, key, value, bias),
            _by_formula(query, key, value, bias),
            atol=1e-5,
            rtol=1e-4,
        )


def test_masked_keys_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_has_fast_products", lambda device, dtype: True)
    monkeypatch.setattr(operations, "_MIN_SCORES", 0)
    query, (key, value) = torch.randn(2, 8, 4, 16), torch.randn(2, 2, 8, 512, 16)
    bias = torch.zeros(512).masked_fill_(torch.arange(512) >= 300, -torch.inf)
    short = attention(query, key[:, :, :300], value[:, :, :300])
    torch.testing.assert_close(attention(query, key, value, bias), short, atol=1e-6, rtol=1e-5)


def test_products_are_not_used_if_their_scores_would_take_too_much_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "_has_fast_products", lambda device, dtype: True)
    monkeypatch.setattr(operations, "_MAX_SCORES", 300 * 299)
    monkeypatch.setattr(operations, "_attend_by_products", None)  # fails if it is called
    query = torch.randn(1, 2, 300, 16)
    torch.testing.assert_close(
        attention(query, query, query), _by_formula(query, query, query, None)
    )


def test_attention_in_bfloat16_is_as_close_as_bfloat16_allows() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 12, 300, 64)
    output = attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    torch.testing.assert_close(
        output.float(), _by_formula(query, key, value, None), atol=1e-2, rtol=5e-2
    )


def _by_formula(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Vaswani et al. 2017, equation 1."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return torch.softmax(scores if bias is None else scores + bias, -1) @ value
