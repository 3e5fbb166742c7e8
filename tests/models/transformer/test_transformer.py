"""Our transformer against diffusers' WanTransformer3DModel: the same numbers, names, shapes and folders."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformer import TINY, tiny_transformer
from torch import Tensor, nn

from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine.rollout import index_range
from rollforce.errors import CheckpointError, ConfigError, ShapeError
from rollforce.models.transformer.attention import KVShape
from rollforce.models.transformer.transformer import (
    WAN_1_3B,
    WAN_14B,
    WAN_I2V_14B,
    Condition,
    TransformerConfig,
    VideoTransformer,
)
from rollforce.training.causal_masking import additive, block_causal

transformer_wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
Wan = transformer_wan.WanTransformer3DModel

TEXT = 512  # diffusers takes the last 512 tokens of cross-attention for the text
TEXT_TO_VIDEO = TransformerConfig(3, 16, 3, 80, in_channels=4, out_channels=4, text_dim=12, freq_dim=16)
ODD_HEAD = TransformerConfig(2, 20, 2, 64, in_channels=6, out_channels=6, text_dim=8, freq_dim=8)
IMAGE_TO_VIDEO = replace(TEXT_TO_VIDEO, in_channels=9, image_dim=10, added_kv_proj_dim=48)
MODELS = pytest.mark.parametrize("config", [TEXT_TO_VIDEO, ODD_HEAD, IMAGE_TO_VIDEO], ids=["t2v", "odd head", "i2v"])
SIZES = pytest.mark.parametrize("size", [(4, 6), (6, 4), (2, 10)], ids=["landscape", "portrait", "strip"])


def theirs_of(ours: VideoTransformer) -> Any:
    """diffusers' class with our weights, loaded strictly."""
    theirs = Wan(**asdict(ours.config))
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.eval().requires_grad_(False)


class Masked:
    """diffusers' attention with a mask on self-attention, which its class has no argument for."""

    def __init__(self, mask: Tensor | None) -> None:
        self.mask, self.plain = mask, transformer_wan.WanAttnProcessor()

    def __call__(self, attn: nn.Module, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None,
                 rotary: Any = None) -> Tensor:  # fmt: skip
        return self.plain(attn, x, text, self.mask if rotary is not None else None, rotary)


def asked(theirs: Any, x: Tensor, sigma: Tensor, text: Tensor, image: Tensor | None, mask: Tensor | None) -> Tensor:
    """Velocity of diffusers' model: noise per latent is given to it per token."""
    for block in theirs.blocks:
        block.attn1.set_processor(Masked(mask))
    tokens = x.shape[-2] * x.shape[-1] // 4
    time = (1000 * sigma).repeat_interleave(tokens, dim=1)
    return theirs(x.transpose(1, 2), time, text, image, return_dict=False)[0].transpose(1, 2)


def inputs(config: TransformerConfig, size: tuple[int, int], latents: int, batch: int) -> tuple[Tensor, ...]:
    x = torch.randn(batch, latents, config.in_channels, *size)
    text = torch.randn(batch, TEXT, config.text_dim)
    text[:, 40:] = 0
    image = torch.randn(batch, 7, config.image_dim) if config.image_dim else None
    return x, torch.rand(batch, latents), text, image


def walked(
    ours: VideoTransformer,
    cache: KVCache,
    x: Tensor,
    sigma: Tensor,
    condition: Condition,
    chunk: int,
    sight: Visibility,
) -> Tensor:
    """Chunk by chunk: each call sees what the cache holds, and is committed to it."""
    out = []
    for low in range(0, x.shape[1], chunk):
        part = slice(low, low + chunk)
        group = LatentGroup(low, x[:, part].shape[1], sight, commit=True)
        index = index_range(low, group.latents)
        out.append(ours(x[:, part], sigma[:, part], index, condition, CallMemory(cache, [group])))
    return torch.cat(out, dim=1)


def arena_for(config: TransformerConfig, x: Tensor, tiers: list[Any], flight: int) -> KVCache:
    tokens = x.shape[-2] * x.shape[-1] // config.patch**2
    heads, width = config.num_attention_heads, config.attention_head_dim
    return KVCache(tiers, KVShape(config.num_layers, x.shape[0], heads, tokens, width), flight)


# -- the same numbers -------------------------------------------------------------------------------------------------


@MODELS
@SIZES
@torch.no_grad()
def test_bidirectional(config: TransformerConfig, size: tuple[int, int]) -> None:
    ours = tiny_transformer(config=config)
    x, sigma, text, image = inputs(config, size, latents=5, batch=2)
    out = ours(x, sigma, index_range(0, 5), ours.condition(text, image))
    expected = asked(theirs_of(ours), x, sigma, text, image, None)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@MODELS
@SIZES
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("positions", ["absolute", "realigned"])
@torch.no_grad()
def test_cached_walk_is_block_causal(
    config: TransformerConfig, size: tuple[int, int], chunk: int, positions: str
) -> None:
    ours, count = tiny_transformer(config=config), 8  # the last chunk of 3 is short
    x, sigma, text, image = inputs(config, size, count, batch=1)
    cache = arena_for(config, x, [Sink(2), Window(count)], flight=chunk)
    out = walked(ours, cache, x, sigma, ours.condition(text, image), chunk, Visibility(positions=positions))
    mask = additive(block_causal(count, chunk, size[0] * size[1] // 4))
    theirs = theirs_of(ours)
    torch.testing.assert_close(out, asked(theirs, x, sigma, text, image, mask), rtol=1e-4, atol=1e-4)
    assert (out - asked(theirs, x, sigma, text, image, None)).abs().max() > 1e-2  # the mask matters


@torch.no_grad()
def test_cached_walk_with_a_full_window_is_a_banded_mask() -> None:
    ours, count, chunk, window = tiny_transformer(config=TEXT_TO_VIDEO), 10, 2, 6
    x, sigma, text, _ = inputs(TEXT_TO_VIDEO, (4, 6), count, batch=2)
    cache = arena_for(TEXT_TO_VIDEO, x, [Window(window - chunk)], flight=chunk)
    out = walked(ours, cache, x, sigma, ours.condition(text), chunk, Visibility(positions="absolute"))
    mask = additive(block_causal(count, chunk, 6, window=window))
    torch.testing.assert_close(out, asked(theirs_of(ours), x, sigma, text, None, mask), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_half_precision_stays_near_float32() -> None:
    ours = tiny_transformer(config=IMAGE_TO_VIDEO)
    x, sigma, text, image = inputs(IMAGE_TO_VIDEO, (4, 6), latents=4, batch=1)
    mask = additive(block_causal(4, 2, 6))
    expected = ours(x, sigma, index_range(0, 4), ours.condition(text, image), mask=mask)
    half = ours.to(torch.bfloat16)
    for name in ("sdpa", "plain"):
        half.set_attention(name)
        out = half(x, sigma, index_range(0, 4), half.condition(text, image), mask=mask)
        assert out.dtype == x.dtype and (out - expected).abs().mean() < 0.02 * expected.abs().mean()


# -- images: wanted or not --------------------------------------------------------------------------------------------


def test_image_tokens_are_asked_for_and_refused() -> None:
    text, image = torch.randn(1, 5, 12), torch.randn(1, 7, 10)
    with pytest.raises(ConfigError, match=r"image-to-video model: give the tokens of an image, \[B, L, 10\]"):
        tiny_transformer(config=IMAGE_TO_VIDEO).condition(text)
    with pytest.raises(ConfigError, match="takes no image tokens"):
        tiny_transformer(config=TEXT_TO_VIDEO).condition(text, image)
    with pytest.raises(ShapeError, match=r"are \[1, 7, 9\]; this model takes \[B, L, 10\]"):
        tiny_transformer(config=IMAGE_TO_VIDEO).condition(text, image[..., :9])


def test_channels_of_the_condition_are_asked_for() -> None:
    model = tiny_transformer(config=IMAGE_TO_VIDEO)
    condition = model.condition(torch.randn(1, 5, 12), torch.randn(1, 7, 10))
    with pytest.raises(ShapeError, match=r"4 channels; this model takes 9 \(4 noisy and 5 of what is given\)"):
        model(torch.randn(1, 2, 4, 4, 4), torch.ones(1, 2), index_range(0, 2), condition)


def test_image_projections_have_the_width() -> None:
    with pytest.raises(ConfigError, match="added_kv_proj_dim None must be the width, 48"):
        replace(TEXT_TO_VIDEO, image_dim=10)
    with pytest.raises(ConfigError, match="and None without one"):
        replace(TEXT_TO_VIDEO, added_kv_proj_dim=48)


# -- the same names and shapes, at full size --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(WAN_1_3B, 825, 1_418_996_800), (WAN_14B, 1095, 14_288_491_584), (WAN_I2V_14B, 1303, 16_394_878_784)],
    ids=["1.3B", "14B", "I2V 14B"],
)
def test_full_size_names_and_shapes(config: TransformerConfig, tensors: int, parameters: int) -> None:
    with torch.device("meta"):
        ours, theirs = VideoTransformer(config), Wan(**asdict(config))
    here, there = ({name: tuple(t.shape) for name, t in model.state_dict().items()} for model in (ours, theirs))
    assert here == there
    assert len(here) == tensors and sum(t.numel() for t in ours.parameters()) == parameters


# -- the same folders -------------------------------------------------------------------------------------------------

PUBLIC = {  # config.json of the three public folders, field by field
    "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": None,
    "attention_head_dim": 128, "cross_attn_norm": True, "eps": 1e-06, "ffn_dim": 8960, "freq_dim": 256,
    "image_dim": None, "in_channels": 16, "num_attention_heads": 12, "num_layers": 30, "out_channels": 16,
    "patch_size": [1, 2, 2], "pos_embed_seq_len": None, "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024,
    "text_dim": 4096,
}  # fmt: skip
PUBLIC_14B = {**PUBLIC, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
PUBLIC_I2V = {**PUBLIC_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


@pytest.mark.parametrize(
    ("public", "config"), [(PUBLIC, WAN_1_3B), (PUBLIC_14B, WAN_14B), (PUBLIC_I2V, WAN_I2V_14B)]
)
def test_public_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public: dict[str, Any], config: TransformerConfig
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(public))
    monkeypatch.setattr("rollforce.checkpoints.model_folder.read_weights", lambda folder: {})
    monkeypatch.setattr("rollforce.checkpoints.model_folder.adopt", lambda model, state, source: None)
    assert VideoTransformer.load(tmp_path).config == config


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"qk_norm": None}, ConfigError, r"qk_norm = None is not built here; only 'rms_norm_across_heads' is"),
        ({"pos_embed_seq_len": 514}, ConfigError, "pos_embed_seq_len = 514"),
        ({"vace_layers": [0, 5]}, ConfigError, r"vace_layers = \[0, 5\] is not a setting"),
        ({"_class_name": "WanVACETransformer3DModel"}, CheckpointError, "describes a WanVACETransformer3DModel"),
    ],
)
def test_configs_of_something_else_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**PUBLIC, **change}))
    with pytest.raises(error, match=words):
        VideoTransformer.load(tmp_path)


def test_a_config_without_sizes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", "num_layers": 2}))
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        VideoTransformer.load(tmp_path)


@MODELS
@pytest.mark.parametrize("shard", [None, 20_000], ids=["one file", "shards"])
def test_folders_go_both_ways(tmp_path: Path, config: TransformerConfig, shard: int | None) -> None:
    """diffusers' folder -> ours -> diffusers -> ours: every tensor, dtype included."""
    theirs = theirs_of(tiny_transformer(config=config)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "a", max_shard_size=shard or "5GB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == (1 if shard is None else len(files(tmp_path / "a")))
    ours = VideoTransformer.load(tmp_path / "a")
    assert ours.config == config
    ours.save(tmp_path / "b", **({} if shard is None else {"limit": shard}))
    back = Wan.from_pretrained(tmp_path / "b", torch_dtype=torch.bfloat16)
    again = VideoTransformer.load(tmp_path / "b")
    for name, tensor in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == tensor.dtype == torch.bfloat16
        for other in (ours, back, again):
            assert torch.equal(other.state_dict()[name].to(tensor.dtype), tensor), name
    assert (len(files(tmp_path / "b")) > 1) == (shard is not None)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_saving_again_in_one_file_forgets_the_shards(tmp_path: Path) -> None:
    tiny_transformer(seed=0).save(tmp_path, limit=5_000)
    newer = tiny_transformer(seed=1)
    newer.save(tmp_path)
    assert torch.equal(VideoTransformer.load(tmp_path).proj_out.weight, newer.proj_out.weight)


def test_unused_norms_of_the_public_i2v_files_are_left_out(tmp_path: Path) -> None:
    tiny_transformer(config=IMAGE_TO_VIDEO).save(tmp_path)
    (path,) = files(tmp_path)
    extra = {f"blocks.{n}.attn2.norm_added_q.weight": torch.ones(48) for n in range(3)}
    save_file(load_file(path) | extra, path)
    assert not set(VideoTransformer.load(tmp_path).state_dict()) & set(extra)


def test_weights_that_do_not_fit_say_how(tmp_path: Path) -> None:
    tiny_transformer().save(tmp_path)
    (path,) = files(tmp_path)
    whole = load_file(path)
    save_file({name: tensor for name, tensor in whole.items() if "norm_q" not in name}, path)
    with pytest.raises(CheckpointError):
        VideoTransformer.load(tmp_path)
    save_file(whole, path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attention_head_dim": 24}))
    with pytest.raises(CheckpointError):
        VideoTransformer.load(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        VideoTransformer.load(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_loading_maps_the_file_and_copies_nothing(tmp_path: Path) -> None:
    """Memory of its own (not shared with the file) that a loaded model takes is a small part of its weights."""
    wide = replace(TINY, attention_head_dim=192, ffn_dim=2048)
    tiny_transformer(config=wide).save(tmp_path)
    weights = files(tmp_path)[0].stat().st_size
    VideoTransformer.load(tmp_path)  # imports what loading needs
    before = own_bytes()
    model = VideoTransformer.load(tmp_path)
    assert sum(t.nbytes for t in model.parameters()) > 0.99 * weights > 20e6
    assert own_bytes() - before < 0.2 * weights


def own_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])
