"""A transformer small enough to compute by the hundred."""

from __future__ import annotations

import torch

from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer

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
