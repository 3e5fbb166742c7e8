"""Muon: its updates are orthogonal, and those of torch but for rounding."""

from __future__ import annotations

import math

import torch

from rollforce.training.optim import Muon, orthogonal


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
