"""fp32 copies of 16-bit weights: the same steps as in fp32, and where a stop is gone on from."""

from functools import partial
from typing import Any

import pytest
import torch

from finetune.training.optimizer import MasterWeights

make = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)


def trained(weights: list[torch.Tensor], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for number, weight in enumerate(weights):
            weight.grad = torch.sin(torch.arange(weight.numel()) + step + number).reshape(weight.shape).to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


def pair(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8).to(dtype)) for _ in range(2)]


def groups(weights: list[Any]) -> list[dict[str, Any]]:
    return [{"params": [weights[0]], "lr": 1e-4}, {"params": [weights[1]]}]


def test_small_steps_add_up_in_the_copies() -> None:
    sixteen, full, lost = pair(torch.bfloat16), pair(torch.bfloat16), pair(torch.bfloat16)
    full = [torch.nn.Parameter(weight.detach().float()) for weight in full]
    for weights, optimizer in (
        (sixteen, MasterWeights(groups(sixteen), make)), (full, make(groups(full))), (lost, make(groups(lost)))
    ):  # fmt: skip
        for _ in range(50):
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            optimizer.step()
    before = pair(torch.bfloat16)
    for number in range(2):
        assert torch.equal(sixteen[number], full[number].to(torch.bfloat16))
    assert lost[0][0, 0] == before[0][0, 0] != sixteen[0][0, 0]  # what the copies are for


def test_a_scheduler_sets_the_rate_of_the_copies() -> None:
    weights = pair(torch.bfloat16)
    optimizer = MasterWeights(groups(weights), make)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = [weight.detach().clone() for weight in weights]
    trained(weights, optimizer, range(3))
    scheduler.step()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_run_goes_on_from_its_state(tmp_path: Any) -> None:
    whole, halves = pair(torch.bfloat16), pair(torch.bfloat16)
    optimizer = MasterWeights(groups(whole), make)
    trained(whole, optimizer, range(20))
    first = MasterWeights(groups(halves), make)
    trained(halves, first, range(10))
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    torch.save([weight.detach() for weight in halves], tmp_path / "weights.pt")
    again = [torch.nn.Parameter(weight) for weight in torch.load(tmp_path / "weights.pt", weights_only=True)]
    second = MasterWeights(groups(again), make)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    trained(again, second, range(10, 20))
    for (weight, copy), (other, expected) in zip(second.pairs(), optimizer.pairs(), strict=True):
        assert torch.equal(copy, expected) and torch.equal(weight, other)


def test_a_weight_that_was_changed_from_outside_is_copied_again() -> None:
    weights = pair(torch.bfloat16)
    optimizer = MasterWeights(groups(weights), make)
    trained(weights, optimizer, range(3))
    with torch.no_grad():
        weights[0].fill_(5.0)
    optimizer.state_of(weights[0])["exp_avg"].zero_()
    trained(weights, optimizer, range(3, 4))
    assert (weights[0] - 5).abs().max() < 0.1


@pytest.mark.parametrize("without", [0, 1])
def test_weights_without_a_gradient_stay(without: int) -> None:
    weights = pair(torch.bfloat16)
    optimizer = MasterWeights(groups(weights), make)
    before = weights[without].detach().clone()
    weights[1 - without].grad = torch.ones(8, 8, dtype=torch.bfloat16)
    optimizer.step()
    assert torch.equal(weights[without], before)
    assert not torch.equal(weights[1 - without], before)


def test_its_state_has_the_rate_of_the_next_step() -> None:
    weights = pair(torch.bfloat16)
    optimizer = MasterWeights(groups(weights), make)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trained(weights, optimizer, range(1))
    scheduler.step()
    second = MasterWeights(groups(pair(torch.bfloat16)), make)
    second.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in second.param_groups] == [5e-5, 5e-4]
