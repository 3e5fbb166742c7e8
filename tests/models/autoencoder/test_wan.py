"""The Wan autoencoder as a stream: parity with the reference, any chunking, snapshots, tiles, sizes, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens import cases, close, read, video_order
from hypothesis import given, settings
from hypothesis import strategies as st
from public_weights import to_original
from torch import Tensor

from rollforce.errors import CheckpointError, ConfigError, ShapeError, SnapshotError
from rollforce.models.autoencoder.interface import Decoder
from rollforce.models.autoencoder.tiling import Tiling
from rollforce.models.autoencoder.wan import WanAutoencoder
from rollforce.streaming.snapshot import Snapshot

diffusers = pytest.importorskip("diffusers")

EXACT = 2e-5  # the goldens' tolerance for this autoencoder
SMALL = {"base_dim": 4, "z_dim": 4, "latents_mean": [0.3, -0.5, 0.1, 0.7], "latents_std": [2.0, 1.5, 0.8, 1.1]}


def build(dtype: torch.dtype = torch.float32, tiling: Tiling | None = None, **changes: Any) -> WanAutoencoder:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**(SMALL | changes)).requires_grad_(False)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(3)  # pictures that use the whole range
    return WanAutoencoder(vae.to(dtype), tiling)


@pytest.fixture(scope="module")
def model() -> WanAutoencoder:
    return build()


def latents_of(count: int, height: int = 4, width: int = 6, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, count, 4, height, width, generator=torch.Generator().manual_seed(seed))


def video_of(frames: int, height: int = 16, width: int = 24, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def streamed(decoder: Decoder, latents: Tensor, cuts: list[int]) -> np.ndarray:
    return np.concatenate([decoder.decode(part) for part in latents.split(cuts, dim=1)])


# -- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", cases("vae_"))
def test_goldens(path: Path) -> None:
    spec, tensors = read(path)
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    told = {name: value for name, value in spec["config"].items() if name != "dim"}
    config = {**told, "base_dim": spec["config"]["dim"]}
    config |= {"latents_mean": spec["latent_mean"], "latents_std": spec["latent_std"]}
    vae = WanAutoencoder.from_state(weights, config)
    latents = video_order(tensors["z"])  # goldens: [B, C, T, H, W]
    with torch.no_grad():
        drawing = vae.drawing()
        drawn = torch.cat([drawing(latent) for latent in latents.split(1, dim=1)], dim=1)
        close(video_order(drawn) * 2 - 1, tensors["decode.video"], EXACT, "decode.video")
        frames = (tensors["video"].permute(0, 2, 3, 4, 1) + 1) / 2
        close(video_order(vae.encode(frames)), tensors["encode.mu_normalized"], EXACT, "encode")
        first = next(key for key in tensors if key.startswith("encode1"))
        close(video_order(vae.encode(frames[:, :1])), tensors[first], EXACT, "encode1")
    expected = drawn[0].clamp(0, 1).movedim(1, -1).mul(255).round().byte().numpy()
    for cuts in (each["latent_frames"] for each in spec["streaming"].values() if isinstance(each, dict)):
        assert np.array_equal(streamed(vae.decoder(), latents, cuts), expected)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (6, 4), (2, 2)])
def test_equals_diffusers(model: WanAutoencoder, height: int, width: int) -> None:
    latents, frames = latents_of(3, height, width), torch.from_numpy(video_of(9, 8 * height, 8 * width))[None]
    mean, std = (torch.tensor(SMALL[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
    pixels = model.vae.decode((latents * std + mean).transpose(1, 2)).sample
    assert torch.allclose(model.decode(latents), (video_order(pixels).movedim(2, -1) + 1) / 2, atol=1e-5)
    mode = model.vae.encode(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(model.encode(frames), (video_order(mode) - mean) / std, atol=1e-5)


def test_geometry(model: WanAutoencoder) -> None:
    assert (model.channels, model.stride, model.frames, model.first_frames) == (4, 8, 4, 1)


def test_real_size_from_the_original_names() -> None:
    with torch.device("meta"):
        state = to_original("autoencoder", diffusers.AutoencoderKLWan().state_dict())
    model = WanAutoencoder.from_state(state)
    assert (model.channels, model.stride, model.frames, len(state)) == (16, 8, 4, 194)
    assert 2 * sum(weight.numel() for weight in model.parameters()) == pytest.approx(254e6, rel=0.01)  # docstring


# -- streams --------------------------------------------------------------------------------------------------------


@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 3), min_size=1, max_size=3), size=st.sampled_from([(2, 4), (4, 2)]))
def test_cuts_change_no_frame(model: WanAutoencoder, cuts: list[int], size: tuple[int, int]) -> None:
    latents = latents_of(1 + sum(cuts), *size, batch=2)
    whole = model.decode(latents)
    decoder = model.decoder()
    parts = [decoder.decode(part) for part in latents[:1].split([1, *cuts], dim=1)]
    assert [len(part) for part in parts] == [1, *(4 * cut for cut in cuts)]
    assert np.array_equal(np.concatenate(parts), whole[0].mul(255).round().byte().numpy())
    assert torch.equal(model.decode(latents[1:]), whole[1:]), "what else is in the batch changes a video"
    assert len(decoder.flush()) == 0


@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_cuts_change_no_latent(model: WanAutoencoder, cuts: list[int]) -> None:
    frames = video_of(sum(cuts) + 1)
    encoder, told = model.encoder(), 0
    parts = []
    for part in np.split(frames, np.cumsum(cuts)):
        parts.append(encoder.encode(part))
        told += len(part)
        done = 0 if not told else 1 + (told - 1) // 4
        assert sum(each.shape[1] for each in parts) == done
    latents = torch.cat(parts, dim=1)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, model.encode(torch.from_numpy(frames[None, : 4 * done - 3])))


def test_streams_do_not_disturb_each_other(model: WanAutoencoder) -> None:
    videos = [latents_of(2, seed=seed) for seed in (3, 4)]
    decoders, encoder = [model.decoder(), model.decoder()], model.encoder()
    parts: list[list[np.ndarray]] = [[], []]
    for t in range(2):
        for video, decoder, part in zip(videos, decoders, parts, strict=True):
            part.append(decoder.decode(video[:, t : t + 1]))
            encoder.encode(part[-1])
            model.vae.decode(video.transpose(1, 2)[:, :, :1])  # clears what diffusers keeps on the module
    for video, part in zip(videos, parts, strict=True):
        assert np.array_equal(np.concatenate(part), streamed(model.decoder(), video, [2]))


@pytest.mark.parametrize("tiling", [None, Tiling(32, 16)])
@pytest.mark.parametrize("before", [0, 1, 2, 3])  # nothing; None, "Rep" and tensors in the cache
def test_a_snapshot_goes_on_to_the_same_bytes(tmp_path: Path, before: int, tiling: Tiling | None) -> None:
    model, latents = build(tiling=tiling), latents_of(before + 2)
    decoder = model.decoder()
    decoder.decode(latents[:, :before])
    saved = decoder.state_dict()
    expected = decoder.decode(latents[:, before:])
    Snapshot("m", "s", "p", 0, None, {"decoder": saved}).save(tmp_path / "a.safetensors")
    other = model.decoder()
    other.decode(latents_of(2, 2, 2))
    other.load_state_dict(Snapshot.load(tmp_path / "a.safetensors").state["decoder"])
    assert np.array_equal(other.decode(latents[:, before:]), expected)


def test_a_snapshot_of_other_tiles_is_refused() -> None:
    decoder = build().decoder()
    decoder.decode(latents_of(1))
    with pytest.raises(SnapshotError, match="1 tile.s. of .* this autoencoder 2 of"):
        build(tiling=Tiling(32, 16)).decoder().load_state_dict(decoder.state_dict())


def test_reset_begins_anew(model: WanAutoencoder) -> None:
    latents, frames = latents_of(2, 2, 2), video_of(3)
    decoder, encoder = model.decoder(), model.encoder()
    first, code = decoder.decode(latents), encoder.encode(frames)
    decoder.reset(), encoder.reset()
    assert np.array_equal(decoder.decode(latents), first) and torch.equal(encoder.encode(frames), code)


def test_goes_on_from_prefilled_latents(model: WanAutoencoder) -> None:
    clip = video_of(5)
    given, more = model.encoder().encode(clip), latents_of(2, 2, 3)
    decoder = model.decoder()
    shown = decoder.decode(given)
    assert len(shown) == len(clip)
    expected = streamed(model.decoder(), torch.cat([given, more], dim=1), [4])
    assert np.array_equal(decoder.decode(more), expected[len(clip) :])


def test_image_latent_is_the_last_frame_as_a_beginning(model: WanAutoencoder) -> None:
    latents = latents_of(3, 2, 2, batch=2)
    first = model.image_latent(latents)
    assert first.shape == (2, 1, 4, 2, 2)
    assert torch.equal(first, model.encode(model.decode(latents)[:, -1:]))


def test_bfloat16_is_near_and_streams_exactly(model: WanAutoencoder) -> None:
    half = build(torch.bfloat16)
    latents, frames = latents_of(3), torch.from_numpy(video_of(5)[None])
    drawn = half.decode(latents)
    assert drawn.dtype == torch.float32
    assert (drawn - model.decode(latents)).abs().mean() < 0.02
    assert (half.encode(frames) - model.encode(frames)).abs().mean() < 0.02
    assert np.array_equal(streamed(half.decoder(), latents, [1, 1, 1]), streamed(half.decoder(), latents, [3]))
    assert torch.equal(WanAutoencoder(half.vae.float()).decode(latents), half.decode(latents)), "means were rounded"


# -- tiles ----------------------------------------------------------------------------------------------------------


def near_sighted(tiling: Tiling | None = None) -> WanAutoencoder:
    """An autoencoder whose pixels depend on few cells around them: three at most, not on the whole picture."""
    model = build(tiling=tiling)
    with torch.no_grad():
        for name, weight in model.vae.named_parameters():
            if ".conv2." in name or ".attentions.0.proj." in name:
                weight.zero_()
    return model


@pytest.mark.parametrize("host", [False, True])
def test_tiles_are_the_whole_picture_away_from_seams(host: bool) -> None:
    latents, tiling = latents_of(3, 8, 14), Tiling(64, 32, host)
    tiled, plain = near_sighted(tiling), near_sighted()
    whole, drawn = plain.decode(latents), tiled.decode(latents)
    assert drawn.shape == whole.shape and whole.std() > 0.02
    off = (drawn - whole).abs().amax(dim=(0, 1, 2, 4))  # of every column; tiles begin at cells 0, 3 and 6
    assert off[:24].max() < 1e-5 and off[-24:].max() < 1e-5 and off.max() > 1e-4
    assert off.max() < 3 * whole.std() and off.mean() < 0.1 * whole.std()
    frames = tiled.decoder().decode(latents)
    assert np.array_equal(frames, streamed(tiled.decoder(), latents, [1, 2]))
    video = torch.from_numpy(frames[None])
    read, near = plain.encode(video), tiled.encode(video)
    assert torch.allclose(read[..., :3], near[..., :3], atol=1e-4)
    assert (read - near).abs().mean() < 0.1 * read.std()


def test_one_tile_is_the_whole_picture(model: WanAutoencoder) -> None:
    latents = latents_of(2)
    assert torch.equal(build(tiling=Tiling(64, 16)).decode(latents), model.decode(latents))


# -- refusals and files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 500, 64, 3), "height 500 is not a multiple of 8.*Nearest: 496 or 512"),
        ((1, 1, 64, 100, 3), "width 100 .*Nearest: 96 or 112"),
        ((1, 1, 64, 4, 3), "width 4 .*Nearest: 16"),
        ((1, 4, 16, 16, 3), "4 frames do not fill.*Nearest: 1 or 5"),
        ((1, 0, 16, 16, 3), "0 frames do not fill.*Nearest: 1"),
        ((1, 5, 16, 16), "expected"),
    ],
)
def test_encode_refuses(model: WanAutoencoder, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        model.encode(torch.zeros(shape))


def test_decode_refuses(model: WanAutoencoder) -> None:
    decoder = model.decoder()
    for decode in (model.decode, decoder.decode):
        with pytest.raises(ShapeError):
            decode(torch.zeros(1, 2, 5, 2, 2))
    with pytest.raises(ShapeError, match="nothing to decode"):
        model.decode(latents_of(0))
    with pytest.raises(ShapeError, match="2 videos"):
        decoder.decode(latents_of(1, batch=2))
    decoder.decode(latents_of(1, 2, 4))
    with pytest.raises(ShapeError, match="32 x 16 in a stream of 16 x 32.*reset"):
        decoder.decode(latents_of(1, 4, 2))


@pytest.mark.parametrize(("tile", "overlap", "said"), [(40, 24, "half a tile .20."), (36, 8, "36 is not a multiple")])
def test_tilings_refused(tile: int, overlap: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(tiling=Tiling(tile, overlap))


def test_files(model: WanAutoencoder, tmp_path: Path) -> None:
    latents = latents_of(2, 2, 2)
    model.save(tmp_path / "vae")
    for path in (tmp_path, tmp_path / "vae"):
        assert torch.equal(WanAutoencoder.load(path).decode(latents), model.decode(latents))
    assert WanAutoencoder.load(tmp_path, torch.bfloat16).weight.dtype == torch.bfloat16
    torch.save(to_original("autoencoder", model.vae.state_dict()), tmp_path / "Wan2.1_VAE.pth")
    loaded = WanAutoencoder.from_state(torch.load(tmp_path / "Wan2.1_VAE.pth", weights_only=True), SMALL)
    assert torch.equal(loaded.decode(latents), model.decode(latents))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_dim": 8}, None),
        ({"num_res_blocks": 3}, None),
        ({"latents_std": [1.0]}, "latents_std has 1 numbers.*4 channels"),
        ({"is_residual": True}, "Wan 2.2 5B"),
        ({"colour": 1}, "does not describe a Wan autoencoder.*colour"),
    ],
)
def test_load_says_what_is_wrong(
    model: WanAutoencoder, tmp_path: Path, change: dict[str, Any], said: str | None
) -> None:
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=said):
        WanAutoencoder.load(tmp_path)


def test_load_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        WanAutoencoder.load(tmp_path)
