"""The weights a transformer starts with."""

from __future__ import annotations

import math

import torch
from started_transformer import started_transformer

from rollforce.models.transformer import rope


def test_start_passes_latents_through() -> None:
    model = started_transformer()
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out = model(x, torch.full((1, 1), 0.5), torch.arange(1), model.condition(torch.zeros(1, 2, 8)))
    cosine = torch.nn.functional.cosine_similarity(out.flatten(), x.flatten(), dim=0)
    assert cosine.item() > 0.9


def test_start_looks_at_the_same_place_and_the_same_latent() -> None:
    attention = started_transformer().blocks[0].attn1
    rows = columns = 4
    x = torch.nn.functional.layer_norm(torch.randn(1, 6 * 16, 48, generator=torch.Generator().manual_seed(0)), (48,))
    angle = rope.angles(torch.arange(100_000, 100_006), rows, columns, 12)
    query, key = rope.rotate(attention.query(x), angle), rope.rotate(attention.key_value(x).key, angle)
    seen = (query @ key.transpose(-1, -2) / math.sqrt(12)).softmax(-1)[0]
    token = torch.arange(6 * 16)
    place, latent = token % 16, token // 16
    same_place, same_latent = place[:, None] == place, latent[:, None] == latent
    shares = [((head * same_place).sum(1).mean().item(), (head * same_latent).sum(1).mean().item()) for head in seen]
    assert shares[0][0] > 0.5 and shares[0][1] < 0.3  # the same place at any time
    assert shares[1][0] > 0.5
    assert shares[2][1] > 0.4 and shares[2][0] < 0.2  # the same latent
