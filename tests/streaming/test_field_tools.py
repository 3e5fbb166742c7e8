"""What the field's own tools write is streamed with their own numbers: diffusers' parts, peft's adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_wan import make_wan_folder
from torch import Tensor

from rollforce.engine.flow import Noise
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.streaming.load import load

PROMPT, SIZE, LATENTS = "a red ball bounces over the sea", (32, 48), 3
ONE_STEP = ["layout.levels=[1.0]", f"layout.chunk={LATENTS}"]
"""One call for a chunk, at the level of pure noise: what the libraries' parts do by themselves."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLFORCE_CACHE", str(tmp_path / "cache"))


def ours(folder: Path, seed: int, running: RuntimeOptions | None = None) -> np.ndarray:
    model = load(folder, stream="chunkwise", overrides=ONE_STEP, running=running)
    with model.session(PROMPT, seed=seed, size=SIZE) as session:
        return next(session.stream()).frames


@torch.no_grad()
def theirs(folder: Path, seed: int, adapter: Path | None = None) -> np.ndarray:
    """The first chunk, uint8 [F, H, W, 3], by WanTransformer3DModel, UMT5EncoderModel and AutoencoderKLWan alone."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    transformer: torch.nn.Module = WanTransformer3DModel.from_pretrained(folder / "transformer")
    if adapter is not None:
        from peft import PeftModel

        transformer = PeftModel.from_pretrained(transformer, str(adapter))
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    noise = torch.stack([Noise.of(seed, (16, SIZE[0] // 8, SIZE[1] // 8))(i, 0)[0] for i in range(LATENTS)], dim=1)
    text = embed(
        AutoTokenizer.from_pretrained(folder / "tokenizer"), UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    )
    velocity = transformer(noise[None], torch.tensor([1000.0]), text, return_dict=False)[0]
    video = vae.decode((noise[None] - velocity) * std + mean, return_dict=False)[0]
    return video[0].permute(1, 2, 3, 0).add(1).mul(127.5).clamp(0, 255).round().byte().numpy()


def embed(tokenizer: object, encoder: torch.nn.Module, length: int = 512) -> Tensor:
    """WanPipeline's text, [1, 512, D]: encoded with its mask, then zeros behind it."""
    tokens = tokenizer([PROMPT], padding="max_length", max_length=length, truncation=True, return_tensors="pt")  # type: ignore[operator]
    found = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return found * tokens.attention_mask[..., None]


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and expected.std() > 1
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_a_folder_of_diffusers_gives_its_own_pictures(folder: Path) -> None:
    for seed in (0, 3):
        near(ours(folder, seed), theirs(folder, seed))


@pytest.mark.parametrize("rank", [2, 5])
def test_an_adapter_of_peft_gives_its_own_pictures(folder: Path, tmp_path: Path, rank: int) -> None:
    peft = pytest.importorskip("peft")
    from diffusers import WanTransformer3DModel

    torch.manual_seed(rank)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=3 * rank, target_modules=["to_q", "to_v", "net.0.proj"], init_lora_weights=False
    )
    peft.get_peft_model(WanTransformer3DModel.from_pretrained(folder / "transformer"), settings).save_pretrained(
        tmp_path / "ink"
    )
    found = ours(folder, 1, RuntimeOptions(loras=(str(tmp_path / "ink"),)))
    near(found, theirs(folder, 1, tmp_path / "ink"))
    assert not np.array_equal(found, ours(folder, 1))
