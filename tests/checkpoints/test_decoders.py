"""Small decoders: whose latents a file draws, by its name and its shapes."""

from __future__ import annotations

import pytest
import torch

from rollforce.checkpoints.decoders import SHAPES, WAN, WAN_5B, find_decoder, shapes_hash
from rollforce.errors import CheckpointError
from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig


def shapes(**sizes: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return TaehvAutoencoder(TaehvConfig(**sizes)).layers.state_dict()


@pytest.mark.parametrize(("name", "family", "normalised"), [
    ("taew2_1.pth", WAN, True), ("TAEW2-1.safetensors", WAN, True), ("models/taew2_1_fp16.pth", WAN, True),
    ("lighttaew2_1.safetensors", WAN, False), ("lighttaew2_2.pth", WAN_5B, False), ("taew2_2.pth", WAN_5B, True),
    ("taehv.pth", "HunyuanVideo", True), ("taehv1_5.pth", "HunyuanVideo 1.5", True), ("taecvx.pth", "CogVideoX", True),
    ("taeos1_3.pth", "Open-Sora", True), ("taeltx_2.pth", "LTX-Video", True),
])  # fmt: skip
def test_names(name: str, family: str, normalised: bool) -> None:
    found = find_decoder(name)
    assert (found.family, found.normalised) == (family, normalised)


def test_the_shapes_of_wan_2_1_are_those_of_others_and_tell_nothing() -> None:
    assert {"HunyuanVideo", "CogVideoX", WAN} <= set(SHAPES[shapes_hash(shapes())])
    with pytest.raises(CheckpointError, match="decoder mine.pth: this name is not known.*take taew2_1.pth"):
        find_decoder("mine.pth", shapes())


def test_shapes_that_only_one_family_has_tell_it() -> None:
    assert find_decoder("mine.pth", shapes(channels=48, patch=2)).family == WAN_5B
    with pytest.raises(CheckpointError, match="called as one for Wan 2.1, and its weights have the shapes of one for "):
        find_decoder("taew2_1.pth", shapes(channels=48, patch=2))
    assert find_decoder("taew2_1.pth", shapes()).family == WAN
