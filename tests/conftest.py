"""Shared fixtures: a tiny random transformer and the golden numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small_model import make_model_folder

from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.streaming.load import load
from rollforce.streaming.model import Model

HERE = Path(__file__).parent
torch.set_num_threads(1)  # as the small models compute: several threads share out a product by its size, and round so


def golden_folders() -> list[Path]:
    """The subset in the repository, the full set beside it if present, and the one named by ROLLFORCE_GOLDENS."""
    folders = [HERE / "golden", HERE.parents[1] / "shared" / "goldens"]
    if "ROLLFORCE_GOLDENS" in os.environ:
        folders.append(Path(os.environ["ROLLFORCE_GOLDENS"]))
    return [folder for folder in folders if folder.is_dir()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with small random weights."""
    return make_model_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def small(folder: Path) -> Model:
    """That, loaded. Nobody changes it."""
    return load(folder)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


TINY = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    ffn_dim=48,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    freq_dim=16,
)


def tiny_transformer(seed: int = 0, config: TransformerConfig = TINY) -> VideoTransformer:
    """A small transformer whose random weights make every input matter."""
    generator = torch.Generator().manual_seed(seed)
    model = VideoTransformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * spread + ("norm" in name and "weight" in name)
            )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def model() -> VideoTransformer:
    return tiny_transformer()
