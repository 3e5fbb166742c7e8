"""Shared fixtures: a small model and its transformer, and the same random numbers for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_model import make_model_folder
from tiny_transformer import tiny_transformer

from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.load import load
from rollforce.streaming.model import Model

torch.set_num_threads(1)  # as the small models compute: several threads share out a product by its size, and round so


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


@pytest.fixture(scope="session")
def model() -> VideoTransformer:
    return tiny_transformer()
