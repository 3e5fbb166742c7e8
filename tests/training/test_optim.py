"""Optimisers: rates and matrices, Muon, the moving average, and the guard against numbers that are not finite."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from rollforce.config import to_dict
from rollforce.errors import TrainingError
from rollforce.training import checkpoint
from rollforce.training.optim import Muon, build_optimisers, check_finite, orthogonal, set_rate, update_average
from rollforce.training.recipes import Optimiser, RunSettings, TeacherRecipe


def test_rates_rise_and_fall() -> None:
    settings = Optimiser(warmup=10, decay=0.5, floor=0.1)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.5) and 0.1 < rates[99] < 0.12
    assert all(late <= early for early, late in pairwise(rates[50:]))


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = torch.nn.ModuleList([torch.nn.Linear(4, 4)]), torch.nn.Linear(4, 2)

    net = Net()
    adam, muon = build_optimisers(net, Optimiser("muon", lr=1.0, lr_matrices=2.0))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adam.param_groups[0]["params"]) == 3
    set_rate([adam, muon], 0.5)
    assert (adam.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (0.5, 1.0)
    assert len(build_optimisers(net, Optimiser())) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_guard_names_the_step_and_the_checkpoint(value: float, tmp_path: Path) -> None:
    check_finite(1.0, "the loss", 3, tmp_path)
    with pytest.raises(TrainingError, match=r"step 7: the loss is (nan|inf)\. No checkpoint was written yet"):
        check_finite(value, "the loss", 7, tmp_path)
    checkpoint.save(tmp_path, 5, {}, to_dict(TeacherRecipe(RunSettings(9))), "data", keep=1)
    with pytest.raises(TrainingError, match=r"last good checkpoint is .*checkpoint-000005"):
        check_finite(value, "the loss", 7, tmp_path)


def test_average_follows() -> None:
    slow, fast = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for step in range(400):
        update_average(slow, fast, 0.9, step)
    assert torch.allclose(slow.weight, fast.weight, atol=1e-5)
    with torch.no_grad():
        fast.weight.mul_(2)
    update_average(slow, fast, 0.9, -3)  # before its start the average is the model
    assert torch.equal(slow.weight, fast.weight)


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 48), rounds=5))
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    weight = torch.nn.Parameter(torch.zeros(32, 4, 3, 1))
    muon = Muon([weight], lr=0.1)
    weight.grad = torch.randn(weight.shape)
    muon.step()
    step = torch.linalg.svdvals(weight.detach().flatten(1))
    assert torch.allclose(step, torch.full((12,), 0.1 * math.sqrt(32 / 12)), rtol=0.45)
    assert float((weight.detach() * weight.grad).sum()) < 0


def test_muon_is_that_of_torch_but_for_its_bfloat16() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.zeros(48, 16)) for _ in range(2))
    optimisers = (Muon([ours], lr=0.1),
                  torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, ns_steps=4, adjust_lr_fn="original"))
    for _ in range(3):
        ours.grad = torch.randn(ours.shape)
        theirs.grad = ours.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    assert float((ours - theirs).detach().norm() / ours.detach().norm()) < 0.02
