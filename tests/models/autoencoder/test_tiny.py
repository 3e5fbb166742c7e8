"""The autoencoder: fitting, sizes, streaming decode, files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rollforce.errors import CheckpointError, ShapeError
from rollforce.models.autoencoder.tiny import AutoencoderConfig, TinyAutoencoder

CONFIG = AutoencoderConfig(channels=6, width=16, width_mid=8, width_high=8, blocks=2, memory=2)


@pytest.fixture(scope="module")
def model() -> TinyAutoencoder:
    """A small autoencoder whose every layer matters."""
    torch.manual_seed(0)
    built = TinyAutoencoder(CONFIG)
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    patches = torch.rand(400, 1) * torch.rand(1, CONFIG.patch_values) + 0.05 * torch.rand(400, CONFIG.patch_values)
    built.fit(patches, torch.ones(400))
    return built.eval()


def test_fit_is_the_principal_subspace() -> None:
    torch.manual_seed(1)
    factors = torch.randn(500, 6) * torch.tensor([4.0, 3.0, 2.0, 1.5, 1.0, 0.5])
    directions = torch.linalg.qr(torch.randn(CONFIG.patch_values, 6))[0].T
    patches = 0.5 + 0.05 * factors @ directions
    model = TinyAutoencoder(CONFIG)
    assert model.fit(patches, torch.ones(500)) > 0.9999
    assert torch.allclose(model.spread.square().mean(), torch.tensor(1.0), atol=0.01)
    latents = ((patches - model.mean) @ model.basis.T * model.scale).T.reshape(1, 1, 6, 20, 25)
    video = model.linear(latents)  # untrained, the decoder is the exact inverse
    assert torch.equal(model(latents), video)
    assert torch.allclose(model.encode(video), latents, atol=1e-2)
    assert torch.allclose(model.patches(video).reshape(500, -1), patches, atol=2e-3)


def test_weighted_patches_are_kept_better() -> None:
    torch.manual_seed(2)
    patches = torch.rand(300, CONFIG.patch_values)
    errors = []
    for favour in (1.0, 50.0):
        model = TinyAutoencoder(CONFIG)
        weight = torch.ones(300)
        weight[:10] = favour
        model.fit(patches, weight)
        code = (patches[:10] - model.mean) @ model.basis.T
        errors.append(float((code @ model.basis + model.mean - patches[:10]).square().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (64, 64)])
def test_any_size(model: TinyAutoencoder, height: int, width: int) -> None:
    video = torch.randint(0, 256, (2, 8, height, width, 3), dtype=torch.uint8)
    latents = model.encode(video)
    assert latents.shape == (2, 2, 6, height // 8, width // 8)
    assert torch.allclose(model.encode(video.float() / 255), latents, atol=1e-5)
    with torch.no_grad():
        frames, _ = model.decode(latents)
    assert frames.shape == video.shape
    assert 0 <= float(frames.min()) <= float(frames.max()) <= 1


@pytest.mark.parametrize(
    ("shape", "said"), [((1, 6, 16, 16, 3), "6 frames"), ((1, 4, 12, 16, 3), "12 x 16"), ((4, 16, 16, 3), "expected")]
)
def test_encode_refuses(model: TinyAutoencoder, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ShapeError, match=said):
        model.encode(torch.zeros(shape))


def test_decode_refuses_other_channels(model: TinyAutoencoder) -> None:
    with pytest.raises(ShapeError, match="6"):
        model.decode(torch.zeros(1, 2, 5, 2, 2))


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5), batch=st.integers(1, 3))
def test_chunks_and_company_change_no_bit(model: TinyAutoencoder, cuts: list[int], batch: int) -> None:
    torch.manual_seed(3)
    latents = torch.randn(batch, sum(cuts), 6, 3, 2)
    with torch.no_grad():
        whole, end = model.decode(latents)
        state, parts = None, []
        for part in latents.split(cuts, dim=1):
            frames, state = model.decode(part, state)
            parts.append(frames)
        alone, _ = model.decode(latents[-1:])
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(alone, whole[-1:])
    assert state is not None and all(torch.equal(a, b) for a, b in zip(state, end, strict=True))


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 7), min_size=1, max_size=4))
def test_streams_agree_with_whole_clips(model: TinyAutoencoder, cuts: list[int]) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (sum(cuts) + 4, 16, 24, 3), dtype=np.uint8)
    encoder, decoder = model.encoder(), model.decoder()
    latents = torch.cat([encoder.encode(part) for part in np.split(frames, np.cumsum(cuts))], dim=1)
    each = [model.encode(torch.from_numpy(frames[None, at : at + 4])) for at in range(0, len(frames) - 3, 4)]
    assert torch.equal(latents, torch.cat(each, dim=1))
    drawn = np.concatenate([decoder.decode(part) for part in latents.split(1, dim=1)])
    with torch.no_grad():
        assert np.array_equal(drawn, model.decode(latents)[0][0].mul(255).round().byte().numpy())


@pytest.mark.parametrize("before", [0, 2])
def test_a_state_of_an_older_decoder_goes_on_to_the_same_bytes(model: TinyAutoencoder, before: int) -> None:
    """Snapshots once held the network's past alone: {"past": [...] or None}."""
    latents, past = torch.randn(1, 4, 6, 2, 3, generator=torch.Generator().manual_seed(6)), None
    with torch.no_grad():
        for t in range(before):
            past = list(model.decode(latents[:, t : t + 1], past)[1])
    whole, decoder = model.decoder().decode(latents), model.decoder()
    decoder.load_state_dict({"past": past})
    assert np.array_equal(decoder.decode(latents[:, before:]), whole[4 * before :])


def test_training_path_draws_the_same(model: TinyAutoencoder) -> None:
    latents = torch.randn(2, 7, 6, 4, 4, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        streamed, _ = model.decode(latents)
        assert torch.allclose(model(latents).clamp(0, 1), streamed, atol=1e-5)
        assert torch.allclose(model(latents, slice(3, 5)).clamp(0, 1), streamed[:, 12:20], atol=1e-5)


def test_decoder_looks_back_only_and_not_for_ever(model: TinyAutoencoder) -> None:
    latents = torch.randn(1, 12, 6, 3, 3, generator=torch.Generator().manual_seed(5))
    changed = latents.clone()
    changed[:, 5] += 1
    with torch.no_grad():
        differs = (model(latents) != model(changed)).unflatten(1, (12, 4)).flatten(2).any(-1)[0]
    reach = CONFIG.blocks * CONFIG.memory + 2  # two drawing blocks
    assert differs.tolist() == [5 <= t <= 5 + reach for t in range(12)]


def test_saved_and_loaded(model: TinyAutoencoder, tmp_path: Path) -> None:
    model.save(tmp_path / "a")
    loaded = TinyAutoencoder.load(tmp_path / "a")
    assert not loaded.training and loaded.config == CONFIG
    video = torch.rand(1, 4, 16, 16, 3)
    assert torch.equal(loaded.encode(video), model.encode(video))  # the fitted part is float16 from birth
    latents = model.encode(video)
    assert torch.allclose(loaded.decode(latents)[0], model.decode(latents)[0], atol=5e-3)


def test_load_says_what_is_wrong(model: TinyAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no autoencoder"):
        TinyAutoencoder.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "config.json").write_text('{"channels": 7}')
    with pytest.raises(CheckpointError, match="does not fit"):
        TinyAutoencoder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"chanels": 7}')
    with pytest.raises(CheckpointError, match="does not describe"):
        TinyAutoencoder.load(tmp_path)
