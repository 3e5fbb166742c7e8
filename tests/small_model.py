"""A whole model folder with small random weights, made of the real classes: streams noise, fast."""

from __future__ import annotations

from pathlib import Path

import torch

from rollforce.checkpoints.catalog import presets
from rollforce.config import build, resource
from rollforce.engine.settings import StreamSettings
from rollforce.models.autoencoder.tiny import AutoencoderConfig, TinyAutoencoder
from rollforce.models.text.encoder import TextConfig, TextEncoder
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.world.caption import KINDS

FOR_ANY_MODEL = [
    name for name in presets() if build(StreamSettings, resource(f"configs/stream/{name}.yaml")).heads is None
]
"""Presets but those with head groups, whose labels are of one model."""
WORDS = {"words": ("a", "the", "red", "blue", "ball", "star", "bounces", "over", "green", "hills")}
CARD = "name: small\nlicence: Apache-2.0\nfps: 12\nsize: [32, 48]\nstream: rolling\n"


def make_model_folder(folder: Path, world: bool = False, seed: int = 0) -> Path:
    """Write model.yaml, transformer/, text/ and autoencoder/ into `folder` (48x32 pixels, 12 fps).

    `world`: with the vocabulary of the tiny world, and an encoder that sees something."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(CARD)
    transformer = VideoTransformer(TransformerConfig(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, in_channels=8, out_channels=8,
        text_dim=16, freq_dim=16))
    transformer.save(folder / "transformer")
    words = dict(KINDS) if world else WORDS
    TextEncoder(TextConfig(words, text_dim=16, text_len=24 if world else 12, layers=1, heads=2)).save(folder / "text")
    autoencoder = TinyAutoencoder(AutoencoderConfig(channels=8, width=16, width_mid=16, width_high=16, blocks=1))
    if world:
        autoencoder.fit(torch.rand(100, autoencoder.config.patch_values), torch.ones(100))
    autoencoder.save(folder / "autoencoder")
    return folder
