"""Tiny autoencoders in the format of TAEHV: real names and shapes, streams, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rollforce.errors import CheckpointError, ShapeError
from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig
from rollforce.streaming.snapshot import Snapshot, fork

SMALL = TaehvConfig(channels=4, encoder_width=6, decoder_widths=(8, 6, 4, 4))


def build(config: TaehvConfig = SMALL) -> TaehvAutoencoder:
    torch.manual_seed(0)
    model = TaehvAutoencoder(config).requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1.2 * weight[0].numel() ** -0.5)
    model.layers.decoder[-1].bias.fill_(0.5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> TaehvAutoencoder:
    return build()


def latents_of(count: int, height: int = 2, width: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, count, 4, height, width, generator=torch.Generator().manual_seed(1))


def video_of(frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


# -- the format -----------------------------------------------------------------------------------------------------


def block(where: str, width: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of one block with memory."""
    named: dict[str, tuple[int, ...]] = {}
    for place, before in ((0, 2 * width), (2, width), (4, width)):
        named[f"{where}.conv.{place}.weight"] = (width, before, 3, 3)
        named[f"{where}.conv.{place}.bias"] = (width,)
    return named


def taew2_1() -> dict[str, tuple[int, ...]]:
    """Every name and shape in taew2_1.pth, written down by hand."""
    named: dict[str, tuple[int, ...]] = {"encoder.0.weight": (64, 3, 3, 3), "encoder.0.bias": (64,)}
    for pool, frames in ((2, 2), (7, 2), (12, 1)):
        named[f"encoder.{pool}.conv.weight"] = (64, 64 * frames, 1, 1)
        named[f"encoder.{pool + 1}.weight"] = (64, 64, 3, 3)
        for place in range(pool + 2, pool + 5):
            named |= block(f"encoder.{place}", 64)
    named |= {"encoder.17.weight": (16, 64, 3, 3), "encoder.17.bias": (16,)}
    named |= {"decoder.1.weight": (256, 16, 3, 3), "decoder.1.bias": (256,)}
    for first, width, after, frames in ((3, 256, 128, 1), (9, 128, 64, 2), (15, 64, 64, 2)):
        for place in range(first, first + 3):
            named |= block(f"decoder.{place}", width)
        named[f"decoder.{first + 4}.conv.weight"] = (width * frames, width, 1, 1)
        named[f"decoder.{first + 5}.weight"] = (after, width, 3, 3)
    return named | {"decoder.22.weight": (3, 64, 3, 3), "decoder.22.bias": (3,)}


def test_names_and_shapes_of_the_real_file() -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in taew2_1().items()}
    model = TaehvAutoencoder.from_state(state)
    assert model.config == TaehvConfig()
    assert (model.channels, model.stride, model.frames, model.first_frames) == (16, 8, 4, 1)
    weights = sum(weight.numel() for weight in model.parameters())
    assert weights * 2 == pytest.approx(23e6, rel=0.03), "the size that the module's docstring tells"


def together(layers: torch.nn.Sequential, x_FCHW: Tensor) -> Tensor:
    """The format's layers over all frames of a video at once, in plain words: what a stream must equal."""
    for layer in layers:
        if (kind := type(layer).__name__) == "Recall":
            before = F.pad(x_FCHW, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]
            x_FCHW = F.relu(layer.conv(torch.cat([x_FCHW, before], dim=1)) + x_FCHW)
        elif kind == "TimePool":
            n, c, h, w = x_FCHW.shape
            x_FCHW = layer.conv(x_FCHW.reshape(n // layer.count, layer.count * c, h, w))
        elif kind == "Grow":
            n, c, h, w = x_FCHW.shape
            x_FCHW = layer.conv(x_FCHW).reshape(n * layer.count, c, h, w)
        else:
            x_FCHW = layer(x_FCHW)
    return x_FCHW


def test_decoding_equals_all_frames_at_once(model: TaehvAutoencoder) -> None:
    latents = latents_of(4)
    drawn = together(model.layers.decoder, latents[0])[3:].clamp(0, 1).movedim(1, -1)
    assert drawn.std() > 0.05
    assert torch.allclose(model.decode(latents)[0], drawn, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_clips_last_latent_is_the_formats(model: TaehvAutoencoder, count: int) -> None:
    frames = torch.from_numpy(video_of(count))
    pixels = frames.movedim(-1, 1) / 255
    padded = torch.cat([pixels, pixels[-1:].expand(3, -1, -1, -1)])
    expected = together(model.layers.encoder, padded)
    assert len(expected) == 1 + count // 4
    assert torch.allclose(model.encode(frames[None])[0, -1], expected[-1], atol=1e-5)


# -- streams --------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_cuts_change_no_frame(model: TaehvAutoencoder, cuts: list[int]) -> None:
    latents = latents_of(1 + sum(cuts), batch=2)
    whole, decoder = model.decode(latents), model.decoder()
    parts = [decoder.decode(part) for part in latents[:1].split([1, *cuts], dim=1)]
    assert [len(part) for part in parts] == [1, *(4 * cut for cut in cuts)]
    assert np.array_equal(np.concatenate(parts), whole[0].mul(255).round().byte().numpy())
    assert torch.equal(model.decode(latents[1:]), whole[1:])


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_cuts_change_no_latent(model: TaehvAutoencoder, cuts: list[int]) -> None:
    frames, encoder = video_of(sum(cuts) + 1), model.encoder()
    latents = torch.cat([encoder.encode(part) for part in np.split(frames, np.cumsum(cuts))], dim=1)
    count = 1 + (len(frames) - 1) // 4
    assert latents.shape[1] == count
    assert torch.equal(latents, model.encode(torch.from_numpy(frames[None, : 4 * count - 3])))


def test_a_latent_depends_on_no_later_frame(model: TaehvAutoencoder) -> None:
    frames = torch.from_numpy(video_of(9)[None])
    changed = frames.clone()
    changed[:, 5:] = 0
    assert torch.equal(model.encode(frames)[:, :2], model.encode(changed)[:, :2])
    assert not torch.equal(model.encode(frames)[:, 2:], model.encode(changed)[:, 2:])


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_snapshot_goes_on_to_the_same_bytes(model: TaehvAutoencoder, tmp_path: Path, before: int) -> None:
    latents, decoder = latents_of(before + 2), model.decoder()
    decoder.decode(latents[:, :before])
    Snapshot("m", "s", "p", 0, None, {"decoder": decoder.state_dict()}).save(tmp_path / "a.safetensors")
    expected, other = decoder.decode(latents[:, before:]), model.decoder()
    other.decode(latents_of(2, 3, 2))
    other.load_state_dict(Snapshot.load(tmp_path / "a.safetensors").state["decoder"])
    assert np.array_equal(other.decode(latents[:, before:]), expected)


def test_a_fork_goes_its_own_way(model: TaehvAutoencoder) -> None:
    decoder, latents = model.decoder(), latents_of(6)
    decoder.decode(latents[:, :2])
    twin = fork(decoder)
    rest = decoder.decode(latents[:, 2:])
    assert np.array_equal(twin.decode(latents[:, 2:]), rest)


def test_half_precision_and_image_latent() -> None:
    half, latents = build().to(torch.bfloat16), latents_of(2, batch=2)
    assert half.decode(latents).dtype == torch.float32
    assert half.image_latent(latents).shape == (2, 1, 4, 2, 3)
    assert (half.decode(latents) - build().decode(latents)).abs().mean() < 0.05


def test_patches(model: TaehvAutoencoder) -> None:
    folded = build(TaehvConfig(channels=4, encoder_width=6, decoder_widths=(8, 6, 4, 4), patch=2))
    assert folded.stride == 16
    frames = folded.decode(latents_of(2))
    assert frames.shape == (1, 5, 32, 48, 3) and folded.encode(frames).shape == (1, 2, 4, 2, 3)


# -- refusals and files ---------------------------------------------------------------------------------------------


def test_refusals(model: TaehvAutoencoder) -> None:
    with pytest.raises(ShapeError, match="4 channels"):
        model.decode(torch.zeros(1, 1, 16, 2, 2))
    with pytest.raises(ShapeError):
        model.encode(torch.zeros(1, 1, 20, 16, 3))
    with pytest.raises(ShapeError):
        model.encode(torch.zeros(1, 4, 16, 16, 3))


def test_files(model: TaehvAutoencoder, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state, latents = model.layers.state_dict(), latents_of(2)
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert torch.equal(TaehvAutoencoder.load(tmp_path / name).decode(latents), model.decode(latents))
    assert TaehvAutoencoder.load(tmp_path / "a.pth", torch.float16).weight.dtype == torch.float16


def test_load_says_what_is_wrong(model: TaehvAutoencoder, tmp_path: Path) -> None:
    state = model.layers.state_dict()
    with pytest.raises(CheckpointError, match="no file"):
        TaehvAutoencoder.load(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="format of TAEHV: there is no encoder.0.weight"):
        TaehvAutoencoder.from_state({"conv1.weight": torch.zeros(1)}, "other.pth")
    with pytest.raises(CheckpointError):
        TaehvAutoencoder.from_state({key: value for key, value in state.items() if key != "decoder.22.bias"})
    with pytest.raises(CheckpointError):
        TaehvAutoencoder.from_state(state | {"decoder.4.conv.0.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="4 frames, but 8 frames"):
        TaehvAutoencoder.from_state(state | {"decoder.7.conv.weight": torch.zeros(16, 8, 1, 1)})
