"""Names and shapes of public checkpoints, and agreement with diffusers' own transformer."""

import json

import pytest
import torch
from conftest import TINY, golden_folders, tiny_transformer

from rollforce.errors import CheckpointError, ShapeError
from rollforce.models.transformer import WAN_1_3B, WAN_14B, VideoTransformer
from rollforce.models.weights import from_wan, to_wan
from rollforce.types import index_range

KEYS = [path for folder in golden_folders() if (path := folder / "state_dict_keys_1p3b.json").is_file()]


@pytest.mark.skipif(not KEYS, reason="the key lists lie beside the repository, not in it")
@pytest.mark.parametrize(("config", "original", "diffusers"), [
    (WAN_1_3B, "WanModel_1.3B", "diffusers_WanTransformer3DModel_1.3B"), (WAN_14B, "WanModel_14B", None),
])  # fmt: skip
def test_keys_and_shapes_of_wan(config, original, diffusers):
    lists = json.loads(KEYS[0].read_text())
    with torch.device("meta"):
        ours = {name: list(tensor.shape) for name, tensor in VideoTransformer(config).state_dict().items()}
    wan = {name: entry["shape"] for name, entry in lists[original]["keys"].items()}
    assert from_wan(wan) == ours and to_wan(ours) == wan
    if diffusers:
        assert ours == {name: entry["shape"] for name, entry in lists[diffusers]["keys"].items()}


def test_unknown_names_are_listed():
    with pytest.raises(CheckpointError, match="blocks.0.self_attn.z"):
        from_wan({"blocks.0.self_attn.z.weight": 0, "patch_embedding.bias": 1})


@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (1, 1, 2, 2), (1, 3, 8, 4)])
def test_diffusers_agrees(shape):
    diffusers = pytest.importorskip("diffusers")
    ours = tiny_transformer()
    theirs = diffusers.WanTransformer3DModel(
        patch_size=TINY.patch_size, num_attention_heads=TINY.num_attention_heads,
        attention_head_dim=TINY.attention_head_dim,
        in_channels=4, out_channels=4, text_dim=TINY.text_dim, freq_dim=TINY.freq_dim, ffn_dim=TINY.ffn_dim,
        num_layers=TINY.num_layers, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=TINY.eps,
    )  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=True)
    batch, latents, height, width = shape
    x, text, sigma = (
        torch.randn(batch, latents, 4, height, width),
        torch.randn(batch, 7, TINY.text_dim),
        torch.rand(batch),
    )
    mine = ours(x, sigma[:, None].expand(-1, latents), index_range(0, latents), ours.condition(text))
    with torch.no_grad():
        other = theirs(x.transpose(1, 2), sigma * 1000, text, return_dict=False)[0].transpose(1, 2)
    assert (mine - other).abs().max() < 5e-5


def test_a_folder_of_ours_is_a_folder_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    model = tiny_transformer()
    model.save(tmp_path)
    theirs = diffusers.WanTransformer3DModel.from_pretrained(tmp_path)
    again = VideoTransformer.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]) and torch.equal(tensor, theirs.state_dict()[name])


def test_wrong_inputs_are_named(model, tmp_path):
    condition = model.condition(torch.zeros(1, 3, TINY.text_dim))
    with pytest.raises(ShapeError, match="5 channels"):
        model(torch.zeros(1, 1, 5, 4, 4), torch.ones(1, 1), index_range(0, 1), condition)
    with pytest.raises(ShapeError, match="Nearest: 4 or 6"):
        model(torch.zeros(1, 1, 4, 5, 4), torch.ones(1, 1), index_range(0, 1), condition)
    with pytest.raises(CheckpointError, match="config.json"):
        VideoTransformer.load(tmp_path)
