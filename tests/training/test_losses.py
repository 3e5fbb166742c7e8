"""Training parts: losses against closed forms, noise tables, the start, data, persistent streams."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rollforce.cache.policies import Window
from rollforce.engine import flow
from rollforce.engine.rollout_group import RolloutGroup
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import AutoencoderConfig, TinyAutoencoder
from rollforce.models.transformer import rope
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.training import losses
from rollforce.training.data import LatentFolder, WorldClips, write_latents
from rollforce.training.init_weights import start
from rollforce.training.metrics_log import border_ratio, psnr
from rollforce.training.muon import Muon, orthogonal
from rollforce.training.noise_patterns import PATTERNS, Group, rolling, together, visible
from rollforce.training.optim import follow
from rollforce.training.recipes import Latents, World
from rollforce.training.scores import guided, score_of

SHAPE = (3, 5, 4, 2, 2)  # B, T, C, h, w
TINY = TransformerConfig(4, 12, 2, 64, 4, 4, text_dim=8)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def tiny(positions: bool = True) -> VideoTransformer:
    torch.manual_seed(0)
    model = VideoTransformer(TINY)
    start(model, positions)
    return model


# ---- losses and scores


def test_dmd_gradient_is_critic_minus_teacher_over_its_normaliser(noise: torch.Tensor) -> None:
    torch.manual_seed(2)
    x = torch.randn(SHAPE, requires_grad=True)
    sigma = torch.rand(3, 5)
    weight = torch.tensor([1.0, 0.5, 2.0])[:, None, None, None, None]

    def teacher(noisy: torch.Tensor, sigma_BT: torch.Tensor) -> torch.Tensor:
        assert torch.equal(sigma_BT, sigma)
        return 0.3 * noisy

    def critic(noisy: torch.Tensor, sigma_BT: torch.Tensor) -> torch.Tensor:
        return noisy.tanh()

    losses.dmd(x, teacher, critic, sigma, noise, weight).backward()
    noisy = flow.noised(x.detach(), noise, sigma)
    wanted = teacher(noisy, sigma)
    scale = (x.detach() - wanted).abs().mean((1, 2, 3, 4), keepdim=True)
    expected = (critic(noisy, sigma) - wanted) / scale * weight / x.numel()
    assert x.grad is not None and torch.allclose(x.grad, expected, atol=1e-7)


def test_dmd_learns_only_where_it_is_told(noise: torch.Tensor) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    learns = torch.tensor([False, False, True, True, True]).expand(3, 5)
    losses.dmd(x, lambda n, s: 0.3 * n, lambda n, s: n.tanh(), torch.rand(3, 5), noise, learns_BT=learns).backward()
    assert x.grad is not None and not x.grad[:, :2].any() and bool(x.grad[:, 2:].any())


def test_sid_gradient_for_linear_scores_is_its_closed_form(noise: torch.Tensor) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    sigma, a, b, alpha = torch.rand(3, 5), 0.7, 0.4, 0.8
    losses.sid(x, lambda n, s: a * n, lambda n, s: b * n, sigma, noise, alpha=alpha).backward()
    y = x.detach()
    noisy = flow.noised(y, noise, sigma)
    scale = (y - a * noisy).abs().mean((1, 2, 3, 4), keepdim=True)
    keep = (1 - sigma)[..., None, None, None]  # d noisy / d x
    gap, rest = (a - b) * noisy, a * noisy - y - alpha * (a - b) * noisy
    expected = ((a - b) * keep * rest + gap * (a * keep - 1 - alpha * (a - b) * keep)) / scale / x.numel()
    assert x.grad is not None and torch.allclose(x.grad, expected, atol=1e-7)


def test_dmd_gradient_is_zero_when_scores_agree(noise: torch.Tensor) -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    losses.dmd(x, lambda n, s: n, lambda n, s: n, torch.rand(3, 5), noise).backward()
    assert x.grad is not None and not x.grad.any()


def test_velocity_loss_counts_only_weighted_latents(noise: torch.Tensor) -> None:
    clean = torch.randn(SHAPE)
    right = noise - clean
    wrong_past = right.clone()
    wrong_past[:, 0] += 1
    weight = torch.tensor([0.0, 1, 1, 1, 1]).expand(3, 5)
    assert float(losses.velocity(right, clean, noise)) == 0
    assert float(losses.velocity(wrong_past, clean, noise)) == pytest.approx(0.2, rel=1e-5)
    assert float(losses.velocity(wrong_past, clean, noise, weight)) == 0


def test_guidance_is_linear(noise: torch.Tensor) -> None:
    sigma = torch.rand(3, 5)
    for scale, expected in ((0.0, 2.0), (1.0, 3.0), (2.5, 4.5)):
        score = guided(lambda n, s: n * 3, lambda n, s: n * 2, scale)
        assert torch.allclose(score(noise, sigma), noise * expected, atol=1e-5)


def test_score_of_an_untrained_model_is_a_clean_estimate(noise: torch.Tensor) -> None:
    model = tiny()
    sigma = torch.zeros(3, 5)
    condition = model.condition(torch.zeros(3, 2, 8))
    assert torch.equal(score_of(model, condition)(noise, sigma), noise)  # without noise there is nothing to remove


# ---- noise tables


@pytest.mark.parametrize("kind", sorted(PATTERNS))
def test_rolling_windows_are_as_a_stream_sees_them(kind: str) -> None:
    ladder = (1.0, 0.9, 0.75, 0.5)
    groups = PATTERNS[kind]
    n = rolling(np.random.default_rng(0), 64, groups, 3, 2, ladder)
    assert n.sigma_BT.shape == (64, 15) and n.mask is not None and n.mask.shape == (30, 30)
    at = 0
    for group in groups:
        clean = n.sigma_BT[:, at : at + 3 * group.clean]
        noisy = n.sigma_BT[:, at + 3 * group.clean : at + 3 * (group.clean + group.noisy)]
        assert not clean.any() and bool((noisy > 0).all())
        assert bool((noisy.diff(dim=1) >= 0).all())
        if not group.clean:  # half of the streams that fill stand exactly on the noisiest levels of the ladder
            top = torch.tensor(sorted(ladder)[-group.noisy :]).repeat_interleave(3)
            assert 15 < int(torch.isclose(noisy, top).all(1).sum()) < 50
        at += 3 * (group.clean + group.noisy)
    assert torch.equal(n.weight_T, (n.sigma_BT[0] > 0).float())


def test_who_sees_whom() -> None:
    seen = visible((Group(2, 1), Group(0, 2)), 1).int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]


def test_together_spreads_levels() -> None:
    sigma = together(np.random.default_rng(0), 8, 5).sigma_BT
    assert torch.equal(sigma[:, :1].expand(-1, 5), sigma)
    unshifted = sigma[:, 0] / (3 - 2 * sigma[:, 0])
    assert torch.equal((unshifted * 8).floor(), torch.arange(8.0))  # one level in each eighth


# ---- the start


def test_start_passes_latents_through() -> None:
    model = tiny()
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out = model(x, torch.full((1, 1), 0.5), torch.arange(1), model.condition(torch.zeros(1, 2, 8)))
    cosine = torch.nn.functional.cosine_similarity(out.flatten(), x.flatten(), dim=0)
    assert cosine.item() > 0.9


def test_start_looks_at_the_same_place_and_the_same_latent() -> None:
    attention = tiny().blocks[0].attn1
    rows = columns = 4
    x = torch.nn.functional.layer_norm(torch.randn(1, 6 * 16, 48, generator=torch.Generator().manual_seed(0)), (48,))
    angle = rope.angles(torch.arange(100_000, 100_006), rows, columns, 12)
    query, key = rope.rotate(attention.query(x), angle), rope.rotate(attention.key_value(x).key, angle)
    seen = (query @ key.transpose(-1, -2) / math.sqrt(12)).softmax(-1)[0]
    token = torch.arange(6 * 16)
    place, latent = token % 16, token // 16
    same_place, same_latent = place[:, None] == place, latent[:, None] == latent
    shares = [((head * same_place).sum(1).mean().item(), (head * same_latent).sum(1).mean().item()) for head in seen]
    assert shares[0][0] > 0.5 and shares[0][1] < 0.3  # the same place at any time
    assert shares[1][0] > 0.5
    assert shares[2][1] > 0.4 and shares[2][0] < 0.2  # the same latent


def test_muon_makes_updates_orthogonal() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 48), rounds=5))
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    weight = torch.nn.Parameter(torch.zeros(32, 4, 3, 1))
    muon = Muon([weight], lr=0.1)
    weight.grad = torch.randn(weight.shape)
    muon.step()
    step = torch.linalg.svdvals(weight.detach().flatten(1))
    assert torch.allclose(step, torch.full((12,), 0.1 * math.sqrt(32 / 12)), rtol=0.45)
    assert float((weight.detach() * weight.grad).sum()) < 0


# ---- data, averages, files


def small_world(**settings: Any) -> WorldClips:
    autoencoder = TinyAutoencoder(AutoencoderConfig(channels=4, width=8, width_mid=8, width_high=8, blocks=1))
    held_out = settings.pop("held_out", False)
    chosen = World(**{"clips": 64, "opened": 40, "per_step": 1, "latents": 6, "size": 16, "kept": 2} | settings)
    return WorldClips(chosen, held_out=held_out, autoencoder=autoencoder)


def test_world_clips_are_a_function_of_step_and_part() -> None:
    torch.manual_seed(0)
    one, other = small_world(), small_world()
    other.autoencoder = one.autoencoder
    other.draw(7, 3, 6, 4)
    batch, again = one.draw(2, 1, 3, 4), other.draw(2, 1, 3, 4)
    assert batch.latents_BTCHW is not None and again.latents_BTCHW is not None
    assert batch.latents_BTCHW.shape == (3, 4, 4, 2, 2) and torch.equal(batch.latents_BTCHW, again.latents_BTCHW)
    assert batch.prompts == again.prompts and one.prompts(2, 1, 3) == other.prompts(2, 1, 3)
    later = one.draw(3, 1, 3, 4).latents_BTCHW
    assert later is not None and not torch.equal(later, batch.latents_BTCHW)
    assert all(not one.scene(i).held_out for i in range(4))
    assert all(small_world(held_out=True).scene(i).held_out for i in range(4))
    assert one.fingerprint == other.fingerprint != small_world(size=24).fingerprint


def test_world_clips_have_as_many_pairs_as_asked_for() -> None:
    counts = [len(small_world(two=0.6).scene(i).things) for i in range(200)]
    assert 0.5 < sum(n == 2 for n in counts) / 200 < 0.7
    assert all(len(small_world(two=0.0).scene(i).things) == 1 for i in range(40))


def test_world_clips_have_as_many_alike_pairs_as_asked_for() -> None:
    def share(alike: float) -> float:
        data = small_world(two=1.0, alike=alike)
        pairs = [data.scene(number).things for number in range(200)]
        return sum(one.motion == other.motion for one, other in pairs) / 200

    assert share(1.0) == 1.0 and 0.1 < share(0.0) < 0.35 and 0.5 < share(0.5) < 0.75


def test_other_processes_render_the_same_clips(tmp_path: Path) -> None:
    small_world().autoencoder.save(tmp_path)
    settings = World(autoencoder=str(tmp_path), clips=12, opened=4, per_step=2, latents=3, size=16, kept=12)
    alone, helped = WorldClips(settings), WorldClips(replace(settings, workers=1))
    for step in (0, 3):
        one, other = (data.draw(step, 0, 4, 2).latents_BTCHW for data in (alone, helped))
        assert one is not None and other is not None and torch.equal(one, other)
    assert alone.fingerprint == helped.fingerprint and helped._renderers is not None
    helped._renderers.close()


def test_windows_longer_than_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 latents from clips of 6"):
        small_world().draw(0, 0, 1, 7)


def test_latent_folder_gives_back_what_was_written(tmp_path: Path) -> None:
    clips = [(torch.randn(5, 4, 2, 2), torch.randn(3, 8), f"clip {i}") for i in range(4)]
    fingerprint = write_latents(tmp_path, clips)
    data = LatentFolder(Latents(folder=str(tmp_path), dropped=0.0))
    assert data.fingerprint == fingerprint and data.latent == (4, 2, 2)
    batch = data.draw(0, 0, 6, 5)
    assert batch.latents_BTCHW is not None and batch.text_BLD is not None
    for latents, text, prompt in zip(batch.latents_BTCHW, batch.text_BLD, batch.prompts, strict=True):
        number = int(prompt.split()[1])
        assert torch.equal(latents, clips[number][0]) and torch.equal(text, clips[number][1])
    dropped = LatentFolder(Latents(folder=str(tmp_path), dropped=1.0)).draw(0, 0, 2, 3)
    assert dropped.text_BLD is not None and not dropped.text_BLD.any() and dropped.prompts == ("", "")
    assert write_latents(tmp_path / "other", clips[:3]) != fingerprint


def test_an_empty_latent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no encoded clips.*write_latents"):
        LatentFolder(Latents(folder=str(tmp_path)))


def test_average_follows() -> None:
    slow, fast = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for step in range(400):
        follow(slow, fast, 0.9, step)
    assert torch.allclose(slow.weight, fast.weight, atol=1e-5)
    with torch.no_grad():
        fast.weight.mul_(2)
    follow(slow, fast, 0.9, -3)  # before its start the average is the model
    assert torch.equal(slow.weight, fast.weight)


def test_checks() -> None:
    truth = torch.zeros(1, 8, 2, 2, 3)
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    video = torch.tensor([0.0, 1, 2, 3, 6, 7, 8, 9])[None, :, None, None, None].expand(1, 8, 2, 2, 3)
    assert border_ratio(video, 4) == pytest.approx(3.0)


# ---- persistent streams


def two_streams(student: VideoTransformer) -> RolloutGroup:
    """Rolling, two latents in flight; of a student whose weights all matter."""
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    layout = LayoutSettings(kind="rolling", chunk=1, levels=(1.0, 0.5), shift=1.0)
    return RolloutGroup(student, StreamSettings(layout, (Window(2),)), torch.randn(2, 3, 8), (5, 6), (4, 4, 4))


def test_streams_learn_from_every_tick_and_never_through_the_past() -> None:
    student = tiny()
    streams = two_streams(student)
    lengths = []
    for _ in range(5):
        student.zero_grad()
        video = streams.tick()
        lengths.append(video.shape[1])
        video[:, -1].square().mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in student.parameters())
    assert lengths == [1, 2, 3, 3, 3]  # the buffer fills, then one clean latent stands behind it
    assert not any(keys.requires_grad for keys in streams.rollout.cache.arena.keys)
    assert streams.ticks == 5
    behind = streams.tick()[:, :1]
    assert torch.autograd.grad(behind.sum(), student.proj_out.weight, allow_unused=True)[0].abs().sum() == 0


def test_streams_that_get_other_prompts_begin_anew_as_a_session_that_recaches() -> None:
    streams = two_streams(tiny())
    with torch.no_grad():
        for _ in range(5):
            streams.tick()
        keys = [key.clone() for key in streams.rollout.cache.arena.keys]
        streams.switch(torch.randn(2, 3, 8), ("a", "b"))
        assert streams.prompts == ("a", "b")
        assert any(not torch.equal(new, old) for new, old in zip(streams.rollout.cache.arena.keys, keys, strict=True))
        assert [streams.tick().shape[1] for _ in range(4)] == [1, 2, 3, 3]  # nothing of the old prompts is judged
