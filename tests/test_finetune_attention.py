"""Our attention against PyTorch's own: grouped keys, masks, keys from before, lengths around a stretch, gradients."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.training.attention import QUERIES, attention


def made(length: int, before: int, heads: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(length + before)
    shapes = (2, heads, length, 8), (2, groups, before + length, 8), (2, groups, before + length, 8)
    query, key, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    return query, key, value


def expected(query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
    repeated = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeated, 1), value.repeat_interleave(repeated, 1)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def causal(length: int, before: int) -> torch.Tensor:
    unseen = torch.full((length, before + length), float("-inf"), dtype=torch.float64)
    return unseen.triu(before + 1)[None, None]


@pytest.mark.parametrize("length", [1, 7, QUERIES - 1, QUERIES, QUERIES + 1, 2 * QUERIES + 3])
@pytest.mark.parametrize(("before", "heads", "groups"), [(0, 4, 4), (0, 6, 2), (5, 6, 2)])
@pytest.mark.parametrize("masked", [True, False])
def test_values_and_gradients_are_pytorchs(length: int, before: int, heads: int, groups: int, masked: bool) -> None:
    tensors = made(length, before, heads, groups)
    mask = causal(length, before)
    found, weights = attention(SimpleNamespace(training=True), *tensors, mask if masked else None)
    right = expected(*tensors, mask)
    assert weights is None
    torch.testing.assert_close(found, right)
    direction = torch.randn_like(right)
    for mine, other in zip(
        torch.autograd.grad(found, tensors, direction), torch.autograd.grad(right, tensors, direction), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_what_a_mask_hides_counts_for_nothing() -> None:
    query, key, value = made(9, 0, 4, 2)
    mask = causal(9, 0).clone()
    mask[..., 5:, :3] = float("-inf")
    found, _ = attention(SimpleNamespace(training=True), query, key, value, mask)
    torch.testing.assert_close(found, expected(query, key, value, mask))


def test_dropout_is_for_training_alone() -> None:
    tensors = made(9, 0, 4, 2)
    quiet = attention(SimpleNamespace(training=False), *tensors, None, dropout=0.9)[0]
    torch.testing.assert_close(quiet, expected(*tensors, causal(9, 0)))
    assert not torch.equal(attention(SimpleNamespace(training=True), *tensors, None, dropout=0.9)[0], quiet)
