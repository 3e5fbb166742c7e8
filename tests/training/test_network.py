"""A network with its text encoder: what does not belong to it is refused."""

from __future__ import annotations

import math

import pytest
import torch
from started_transformer import started_transformer
from tiny_transformer import tiny_transformer

from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.training.data import TrainingBatch
from rollforce.training.network import Network, border_ratio, psnr, tabulate_networks


def test_the_table_of_networks() -> None:
    table = tabulate_networks(
        {"teacher": torch.nn.Linear(500, 1000), "student": torch.nn.Linear(500, 1000)}, ("student",)
    )
    assert "501,000" in table and "2.0 MB" in table and "6.0 MB" in table and "10.0 MB" in table


def test_prompts_need_a_text_encoder() -> None:
    network = Network(tiny_transformer(), None)
    with pytest.raises(ConfigError, match=r"no text encoder to read them: take a network folder with text/"):
        network.vectors(TrainingBatch(None, ("a red ball",)))
    assert network.vectors(TrainingBatch(None, ("",), torch.zeros(1, 3, 8))).shape == (1, 3, 8)


def test_latents_of_another_autoencoder_are_refused() -> None:
    network = Network(tiny_transformer(), None)
    network.check_latent("teacher", (4, 4, 6))
    for latent in ((16, 4, 6), (4, 3, 6)):
        with pytest.raises(ConfigError):
            network.check_latent("teacher", latent)


def test_checks() -> None:
    truth = torch.zeros(1, 8, 2, 2, 3)
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    video = torch.tensor([0.0, 1, 2, 3, 6, 7, 8, 9])[None, :, None, None, None].expand(1, 8, 2, 2, 3)
    assert border_ratio(video, 4) == pytest.approx(3.0)


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
