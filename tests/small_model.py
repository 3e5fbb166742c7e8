"""A whole model folder with small random weights, made of the real classes: streams noise, fast."""

from __future__ import annotations

from pathlib import Path

import torch

from rollforce.models.autoencoder import AutoencoderConfig, TinyAutoencoder
from rollforce.models.text import TextConfig, TextEncoder
from rollforce.models.transformer import TransformerConfig, VideoTransformer

WORDS = {"words": ("a", "the", "red", "blue", "ball", "star", "bounces", "over", "green", "hills")}
CARD = "name: small\nlicence: Apache-2.0\nfps: 12\nsize: [32, 48]\nstream: rolling\n"


def make_model_folder(folder: Path) -> Path:
    """Write model.yaml, transformer/, text/ and autoencoder/ into `folder` (48x32 pixels, 12 fps)."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(CARD)
    transformer = VideoTransformer(TransformerConfig(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, in_channels=8, out_channels=8,
        text_dim=16, freq_dim=16))
    transformer.save(folder / "transformer")
    TextEncoder(TextConfig(WORDS, text_dim=16, text_len=12, layers=1, heads=2)).save(folder / "text")
    autoencoder = TinyAutoencoder(AutoencoderConfig(channels=8, width=16, width_mid=16, width_high=16, blocks=1))
    autoencoder.save(folder / "autoencoder")
    return folder
