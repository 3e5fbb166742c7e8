"""A small transformer as training begins with it."""

from __future__ import annotations

import torch

from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.training.network import initialise

CONFIG = TransformerConfig(4, 12, 2, 64, 4, 4, text_dim=8)


def started_transformer(positions: bool = True) -> VideoTransformer:
    torch.manual_seed(0)
    model = VideoTransformer(CONFIG)
    initialise(model, positions)
    return model
