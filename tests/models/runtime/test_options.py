"""How a model runs: choices that change speed and memory, not the stream; mistakes are answered before loading."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import make_model_folder

from rollforce.checkpoints.lora_scale import split_lora
from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.streaming.load import load
from rollforce.streaming.model import Model

PROMPT = "a red ball bounces over green hills"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    names = [f"blocks.{layer}.attn1.to_{part}" for layer in range(2) for part in "qkv"]
    state = {f"{name}.lora_A.weight": torch.randn(4, 32) for name in names}
    state |= {f"{name}.lora_B.weight": torch.randn(32, 4) for name in names}
    save_file(state, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def frames(model: Model) -> np.ndarray:
    with model.session(PROMPT, seed=1) as session:
        return np.concatenate([chunk.frames for chunk in session.stream(2)])


def test_a_lora_is_baked_in(folder: Path, lora: Path) -> None:
    plain, none, full = (
        load(folder, running=RuntimeOptions(loras=loras)) for loras in ((), (f"{lora}=0",), (str(lora),))
    )
    assert np.array_equal(frames(plain), frames(none))
    assert not np.array_equal(frames(plain), frames(full))
    key = "blocks.1.attn1.to_v"
    state = load_file(lora)
    added = state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
    before, after = (model.transformer.state_dict()[f"{key}.weight"] for model in (plain, full))
    torch.testing.assert_close(after, before + added, atol=1e-4, rtol=1e-4)
    assert plain.identity != full.identity


def test_offloaded_blocks_stream_the_same(folder: Path) -> None:
    assert np.array_equal(
        frames(load(folder)), frames(load(folder, running=RuntimeOptions(offload=("blocks", "text"))))
    )


def test_another_kernel_streams_nearly_the_same(folder: Path) -> None:
    one, other = (
        frames(load(folder, running=RuntimeOptions(attention=name))).astype(int) for name in ("sdpa", "plain")
    )
    assert np.abs(one - other).max() <= 2


def test_warming_up_is_timed_and_changes_nothing(folder: Path) -> None:
    model = load(folder)
    before = frames(model)
    assert model.warmup() > 0
    assert np.array_equal(frames(model), before)


def test_scales() -> None:
    assert split_lora("a/b.safetensors") == (Path("a/b.safetensors"), 1.0)
    assert split_lora("a=b.pt=0.5") == (Path("a=b.pt"), 0.5)
    with pytest.raises(ConfigError, match="is not a scale"):
        split_lora("a.pt=much")


@pytest.mark.parametrize(("wrong", "words"), [
    ({"attention": "flashy"}, "flashy.*sdpa"),
    ({"quantize": "int3"}, None),
    ({"offload": ("autoencoder",)}, "Use text or blocks"),
    ({"loras": ("none.safetensors",)}, "does not exist"),
])  # fmt: skip
def test_what_is_refused_before_anything_is_loaded(wrong, words) -> None:
    with pytest.raises(ConfigError, match=words):
        RuntimeOptions(**wrong)


def test_an_image_to_video_transformer_is_refused_before_its_weights_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "i2v")
    config = TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48,
                               in_channels=20, out_channels=8, text_dim=16, freq_dim=16, image_dim=12,
                               added_kv_proj_dim=32)  # fmt: skip
    VideoTransformer(config).save(tmp_path / "i2v" / "transformer")
    monkeypatch.setattr(VideoTransformer, "to", lambda *words, **named: pytest.fail("weights were read"))
    with pytest.raises(CheckpointError, match="image-to-video"):
        load(tmp_path / "i2v")


def test_a_lora_of_another_model(folder: Path, tmp_path: Path) -> None:
    save_file({"blocks.7.attn1.to_q.lora_A.weight": torch.zeros(2, 64), "blocks.7.attn1.to_q.lora_B.weight":
               torch.zeros(64, 2)}, tmp_path / "other.safetensors")  # fmt: skip
    with pytest.raises(CheckpointError):
        load(folder, running=RuntimeOptions(loras=(str(tmp_path / "other.safetensors"),)))
