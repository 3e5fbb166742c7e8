"""Wan 2.1 1.3B at its real size, with random weights: one chunk of 832x480 on a CPU, within its memory.

    pytest -m slow tests/streaming/test_wan_full.py        a quarter of an hour on one core
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rollforce.engine.budget.model_sizes import sizes_of
from rollforce.engine.budget.requirements import MemorySetup, needs, parts
from rollforce.engine.layout import chunkwise
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.evaluation.process import peak_mb
from rollforce.models.autoencoder.wan import WanAutoencoder
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.transformer.transformer import WAN_1_3B, VideoTransformer
from rollforce.streaming.model import Model

SIZE = (480, 832)


class RandomText:
    """Vectors of the size of UMT5-XXL's, without its 5.7 billion weights."""

    words: tuple[str, ...] = ()

    def check(self, prompt: str) -> None:
        """Any prompt will do."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.randn(len(prompts), 512, 4096, generator=torch.Generator().manual_seed(0))


def transformer() -> VideoTransformer:
    with torch.device("meta"):
        model = VideoTransformer(WAN_1_3B)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    return model


@pytest.mark.slow
def test_one_chunk_of_480p_on_a_cpu() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    autoencoder = WanAutoencoder(diffusers.AutoencoderKLWan().eval().requires_grad_(False))
    settings = StreamSettings(LayoutSettings("chunkwise", 3, (1.0,)))
    assert settings.layout.build() == chunkwise((1.0,), 3)
    model = Model(
        name="wan-1.3b", licence="none: random weights", fps=16, size=SIZE, transformer=transformer(),
        text=RandomText(), autoencoder=autoencoder, stream_settings=settings, fingerprint="random",
        threads=torch.get_num_threads(), running=RuntimeOptions(), device=torch.device("cpu"),
    )  # fmt: skip
    assert sum(p.numel() for p in model.transformer.parameters()) == 1_418_996_800
    with model.session("anything") as session:
        chunk = next(session.stream())
    assert chunk.frames.shape == (9, *SIZE, 3) and chunk.frames.dtype == np.uint8
    assert chunk.frames.std() > 1  # neither black nor one colour, as not-a-number would be
    sizes = replace(sizes_of("wan-1.3b"), text=0)
    planned = needs(parts(MemorySetup(sizes, settings, SIZE, torch.float32, torch.device("cpu")))) / 1e6
    assert 0.8 * planned < peak_mb() < planned + 1000  # and Python with its libraries
