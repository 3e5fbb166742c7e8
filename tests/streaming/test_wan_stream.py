"""A whole Wan model, tiny and random, from a released student's file to pictures: convert, load, stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from public_weights import SIZES, to_original  # noqa: E402
from tiny_wan import make_wan_folder  # noqa: E402

from rollforce.checkpoints.convert import prepare, write  # noqa: E402
from rollforce.errors import CheckpointError, ConfigError, ShapeError  # noqa: E402
from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig  # noqa: E402
from rollforce.models.autoencoder.wan import WanAutoencoder  # noqa: E402
from rollforce.models.runtime.options import RuntimeOptions  # noqa: E402
from rollforce.streaming.load import load  # noqa: E402
from rollforce.streaming.model import Model  # noqa: E402
from rollforce.training.data import LatentFolder, write_latents  # noqa: E402
from rollforce.training.recipes import Latents  # noqa: E402

PROMPT = "a red ball bounces over the sea"
SIZE = (32, 48)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bidirectional base as diffusers lays it out."""
    return make_wan_folder(tmp_path_factory.mktemp("models") / "Wan2.1-T2V-tiny-Diffusers")


@pytest.fixture(scope="module")
def student(base: Path) -> Path:
    """Self Forcing's file, converted."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(1)
    state = to_original("transformer", WanTransformer3DModel(**SIZES).state_dict())
    file = base.parent / "self_forcing_dmd.pt"
    torch.save({"generator_ema": {f"model.{key}": value for key, value in state.items()}}, file)
    return write(prepare(file, base, base.parent / "student", size=SIZE))


@pytest.fixture(scope="module")
def model(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLLFORCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load(student)


def frames(session, seconds: float | None = None) -> np.ndarray:
    with session:
        return np.concatenate([chunk.frames for chunk in session.stream(seconds)])


def test_a_converted_student_streams(model: Model) -> None:
    assert model.licence == "Apache-2.0" and model.fps == 16 and model.size == SIZE
    with model.session(PROMPT, seed=1) as session:
        chunks = [chunk for chunk, _ in zip(session.stream(), range(3), strict=False)]
    assert [len(chunk.frames) for chunk in chunks] == [9, 12, 12]  # Wan's first latent is one frame
    assert [chunk.pts for chunk in chunks] == [0, 9 / 16, 21 / 16]
    whole = np.concatenate([chunk.frames for chunk in chunks])
    assert whole.shape == (33, *SIZE, 3) and whole.std() > 1
    assert np.array_equal(frames(model.session(PROMPT, seed=1), 2), whole[:32])
    assert not np.array_equal(frames(model.session("a blue star", seed=1), 2), whole[:32])


def test_frames_are_those_of_the_whole_decode(model: Model) -> None:
    with model.session(PROMPT, seed=1) as session:
        found = np.concatenate([chunk.frames for chunk, _ in zip(session.stream(), range(3), strict=False)])
    with model.session(PROMPT, seed=1) as session, torch.no_grad():
        commits = [commit for commit, _ in zip(session.state.rollout.commits(), range(3), strict=False)]
        latents = torch.cat([commit.latents_BTCHW for commit in commits], dim=1)
        whole = model.autoencoder.decode(latents)[0].mul(255).round().byte().numpy()
    assert np.array_equal(found, whole)


@pytest.mark.parametrize("size", [(48, 32), (16, 80)])
def test_any_size_and_both_orientations(model: Model, size: tuple[int, int]) -> None:
    assert frames(model.session(PROMPT, size=size), 0.5).shape == (8, *size, 3)
    with pytest.raises(ShapeError):
        model.session(PROMPT, size=(40, 48))


def test_image_clip_and_follow(model: Model) -> None:
    clip = np.random.default_rng(0).integers(256, size=(31, *SIZE, 3), dtype=np.uint8)
    with model.session(PROMPT, image=clip[0]) as session:
        assert len(session.given_frames) == 1
        assert [len(c.frames) for c, _ in zip(session.stream(), range(2), strict=False)] == [12, 12]
    with model.session(PROMPT, video=clip) as session:  # 1 + 4 x 7 of 31
        assert len(session.given_frames) == 29
        assert len(next(session.stream()).frames) == 12
    assert len(frames(model.session(PROMPT, follow=clip, strength=0.6))) == 33  # the last picture stands


def test_snapshot_and_ahead(model: Model) -> None:
    whole = frames(model.session(PROMPT, seed=2), 3)
    with model.session(PROMPT, seed=2, ahead=True) as session:
        begun = count_frames(session, 1)
        saved = session.snapshot()
    assert np.array_equal(begun, whole[:16])
    assert np.array_equal(frames(model.resume(saved), 2), whole[16:48])


def count_frames(session, seconds: float) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in session.stream(seconds)])


def test_a_base_cannot_stream_unless_it_is_said_how(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CheckpointError, match="bidirectional teacher: it cannot stream.*--stream"):
        load(base)
    assert load(base, stream="self_forcing").licence == "unknown" and "licence is not known" in caplog.text


def test_a_file_is_no_model(student: Path) -> None:
    with pytest.raises(CheckpointError, match="Convert once: rollforce convert"):
        load(student.parent / "self_forcing_dmd.pt")


def test_a_small_decoder_in_the_place_of_the_full_one(student: Path, model: Model, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = TaehvAutoencoder(TaehvConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8)))
    torch.save(small.layers.state_dict(), tmp_path / "taew.pth")
    fast = load(student, running=RuntimeOptions(decoder=str(tmp_path / "taew.pth")))
    shown, full = frames(fast.session(PROMPT, seed=1), 1), frames(model.session(PROMPT, seed=1), 1)
    assert shown.shape == full.shape == (16, *SIZE, 3) and not np.array_equal(shown, full)
    clip = np.zeros((9, *SIZE, 3), np.uint8)
    with fast.session(PROMPT, video=clip) as one, model.session(PROMPT, video=clip) as two:  # encoded by the full one
        commits = [next(session.state.rollout.commits()).latents_BTCHW for session in (one, two)]
    assert torch.equal(*commits)


def test_a_decoder_of_latents_that_are_not_normalised_gets_such(student: Path, tmp_path: Path) -> None:
    """lighttaew2_1 of LightX2V: the mean and the deviation of each channel come from the autoencoder's config."""
    torch.manual_seed(0)
    state = TaehvAutoencoder(TaehvConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8))).layers.state_dict()
    for name in ("taew2_1.pth", "lighttaew2_1.pth"):
        torch.save(state, tmp_path / name)
    wan = WanAutoencoder.load(student / "vae")
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (
        wan.vae.config.latents_mean, wan.vae.config.latents_std))  # fmt: skip
    plain, light = (load(student, running=RuntimeOptions(decoder=str(tmp_path / name))).autoencoder.small
                    for name in ("taew2_1.pth", "lighttaew2_1.pth"))  # fmt: skip
    latents = torch.randn(1, 3, 16, 4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(light.decode(latents), plain.decode(latents * deviation + mean))
    assert not torch.equal(light.decode(latents), plain.decode(latents))
    pixels = torch.rand(1, 9, *SIZE, 3, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(light.encode(pixels), (plain.encode(pixels) - mean) / deviation)


def test_a_pruned_autoencoder_draws(student: Path, model: Model, tmp_path: Path) -> None:
    """lightvaew2_1 of LightX2V: the full autoencoder with fewer channels, under the original names."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(3)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4])
    torch.save(to_original("autoencoder", vae.state_dict()), tmp_path / "lightvaew2_1.pth")
    fast = load(student, running=RuntimeOptions(decoder=str(tmp_path / "lightvaew2_1.pth")))
    shown = frames(fast.session(PROMPT, seed=1), 1)
    assert shown.shape == (16, *SIZE, 3) and not np.array_equal(shown, frames(model.session(PROMPT, seed=1), 1))


def test_training_makes_first_latents_of_pictures(base: Path, tmp_path: Path) -> None:
    write_latents(tmp_path, [(torch.randn(6, 16, 2, 2), torch.randn(3, 8), "clip")])
    latents = torch.randn(2, 3, 16, 2, 2)
    data = LatentFolder(Latents(folder=str(tmp_path), autoencoder=str(base / "vae")))
    first = data.image_latent(latents)
    assert first.shape == (2, 1, 16, 2, 2)
    autoencoder = WanAutoencoder.load(base / "vae")
    last = (autoencoder.decode(latents)[:, -1:] * 255).round() / 255
    torch.testing.assert_close(first, autoencoder.encode(last), atol=0.05, rtol=0)
    with pytest.raises(ConfigError, match=r"data\.autoencoder is not set"):
        LatentFolder(Latents(folder=str(tmp_path))).image_latent(latents)
