"""A network with its text encoder: what does not belong to it is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_transformer import tiny_transformer

from rollforce.errors import ConfigError
from rollforce.training.data import TrainingBatch
from rollforce.training.network import Network, tabulate_networks


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
