"""Parity of training with the papers' own code: rollouts with gradient, the DMD loss, the critic's loss."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import (
    ROLLOUT,
    GoldenNoise,
    arena,
    cases,
    close,
    config_of,
    ladder_of,
    padded,
    read,
    rolling_forcing_memory,
)
from public_weights import to_original
from torch import Tensor

from rollforce.checkpoints.names import to_ours
from rollforce.engine import flow
from rollforce.engine.flow import shift_level
from rollforce.engine.layout import chunkwise, rolling
from rollforce.engine.rollout import Rollout, Stepping
from rollforce.engine.rollout_group import roll_out
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.training import losses
from rollforce.training.losses import Score, guide
from rollforce.training.reference_cache import ReferenceGradientCache

BUDGET = 21  # latents one call attends to in the reference


Level = Callable[[Tensor], Tensor]
"""The noise level that the reference computes with, of the one that it tells a network."""


def look_up(shift: float, entries: int = 1000) -> Level:
    """The reference's habit: the nearest of `entries` shifted levels, none of which is 0.

    As released, noise is added by the table of shift 5 and undone by that of shift 8."""
    even = 1 - torch.arange(entries, dtype=torch.float64) / entries
    table = shift * even / (1 + (shift - 1) * even)

    def level(sigma_BT: Tensor) -> Tensor:
        return table[(table - sigma_BT.double()[..., None]).abs().argmin(-1)].to(sigma_BT.dtype)

    return level


def reference_score(model: VideoTransformer, text: Tensor, sigma_BT: Tensor, level: Level) -> Score:
    """The clean estimate of a network that is told `sigma_BT`, whatever the level it is asked at."""
    condition = model.condition(text)

    def clean(noisy: Tensor, asked_BT: Tensor) -> Tensor:
        velocity = model(noisy, sigma_BT, torch.arange(noisy.shape[1]), condition)
        return flow.clean_of(noisy, velocity, level(sigma_BT))

    return clean


def learner(path: Path) -> VideoTransformer:
    """A network with gradients, from the weights in `path`."""
    spec, tensors = read(path.with_suffix(".json"))
    model = VideoTransformer(config_of(spec["config"]))
    model.load_state_dict(to_ours("transformer", tensors), strict=True)
    return model


def relatively_close(actual: Tensor, expected: Tensor, what: str) -> None:
    close(actual, expected, 1e-4 * expected.abs().max().item(), what)


def compare_gradients(model: VideoTransformer, tensors: dict[str, Tensor], prefix: str) -> None:
    gradients = to_original("transformer", {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    seen = 0
    for key, expected in tensors.items():
        if key.startswith(prefix):
            relatively_close(gradients[key.removeprefix(prefix)], expected, key)
            seen += 1
    assert seen, f"no gradient {prefix}* in the file"


@pytest.mark.parametrize("variant", ["detached", "ref"])
@pytest.mark.parametrize("path", cases("train_rollout"))
def test_training_rollout(path: Path, variant: str) -> None:
    spec, everything = read(path)
    chunk, frames = spec["frames"] // spec["blocks"], spec["frames"]
    for name, case in spec["cases"].items():
        tensors = {key.removeprefix(f"{name}."): t for key, t in everything.items() if key.startswith(f"{name}.")}
        model = learner(path.parent / spec["weights"])
        ladder = ladder_of(spec, tensors)
        layout = (rolling if name.startswith("rolling") else chunkwise)(ladder, chunk)
        tiers, stepping = rolling_forcing_memory(
            {"kv_cache_frames": spec["num_max_frames"], "max_attention_frames": BUDGET}, chunk)
        if "context_renoise" in tensors:  # the reference's table has no 0: its last entry is the noise of its context
            stepping = Stepping(
                stepping.denoise, stepping.commit, context_noise=shift_level(1e-3, spec["timestep_shift"])
            )
        text = padded(tensors["emb"], spec)
        noise = tensors["noise"]
        cache = arena(model, tiers, noise.shape[0], noise, flight=layout.slots)
        if variant == "ref":
            cache = ReferenceGradientCache(tiers, cache.shape, layout.slots, chunk=chunk)
        with torch.no_grad():
            condition = model.condition(text)
        rollout = Rollout(model, condition, cache, layout, GoldenNoise(tensors, chunk), stepping, length=frames)
        video = roll_out(rollout, lambda m=model, t=text: m.condition(t), case["exit_flag"], last=BUDGET)
        close(video.detach(), tensors["output"], ROLLOUT, f"{name} output")
        loss = (video * tensors["cotangent"]).sum() / video.numel()
        loss.backward()
        relatively_close(loss.detach().reshape(1), tensors[f"{variant}.loss"], f"{name} loss")
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        relatively_close(norm.reshape(1), tensors[f"{variant}.grad_norm"], f"{name} norm")
        compare_gradients(model, tensors, f"{variant}.grad.")


def score_networks(path: Path, spec: dict[str, Any]) -> dict[str, VideoTransformer]:
    return {role: learner(path.parent / spec["weights"][role]) for role in ("real", "fake")}


def learning(mask: str | None, batch: int, frames: int) -> Tensor | None:
    """The files describe their mask in words: "False on the first 3 frames, True elsewhere"."""
    if mask is None:
        return None
    found = re.fullmatch(r"False on the first (\d+) frames, True elsewhere", mask)
    assert found, mask
    return (torch.arange(frames) >= int(found[1])).expand(batch, -1)


def told(spec: dict[str, Any], raw: Tensor, frames: int) -> Tensor:
    """The noise level [B, T] of drawn timesteps: shifted, then clamped."""
    levels = [shift_level(t / 1000, spec["timestep_shift"]) for t in raw.tolist()]
    sigma = torch.tensor(levels).clamp(spec["min_step"] / 1000, spec["max_step"] / 1000)
    return sigma[:, None].expand(-1, frames)


@pytest.mark.parametrize("variant", ["shift5", "ref"])
@pytest.mark.parametrize("path", cases("dmd"))
def test_dmd(path: Path, variant: str) -> None:
    spec, tensors = read(path)
    networks = score_networks(path, spec)
    level = look_up(spec["timestep_shift"])
    inside = level if variant == "shift5" else look_up(8.0)  # the default of the reference's constructor
    for name in spec["cases"]:
        x = tensors[f"{name}.x"].requires_grad_()
        batch, frames = x.shape[:2]
        texts = {key: padded(tensors[f"{name}.{key}"], spec).expand(batch, -1, -1) for key in ("cond", "uncond")}
        sigma = told(spec, tensors[f"{name}.t_raw"], frames)
        real, free, fake = (
            reference_score(networks[role], texts[text], sigma, inside)
            for role, text in (("real", "cond"), ("real", "uncond"), ("fake", "cond"))
        )
        learns = learning(spec["cases"][name]["gradient_mask"], batch, frames)
        teacher = guide(real, free, spec["guidance_scale"] + 1)
        loss = losses.dmd(x, teacher, fake, level(sigma), tensors[f"{name}.noise"], learns_BT=learns)
        loss.backward()
        assert x.grad is not None
        expected = tensors[f"{variant}.{name}.loss"].float().reshape(1)
        torch.testing.assert_close(loss.detach().reshape(1), expected, rtol=1e-5, atol=0)
        relatively_close(x.grad, tensors[f"{variant}.{name}.grad_wrt_x"], f"{name} gradient")
        count = x.numel() if learns is None else int(learns.sum()) * x[0, 0].numel()
        expected = tensors[f"{variant}.{name}.kl_grad_normalized"]
        seen = torch.ones(batch, frames, dtype=torch.bool) if learns is None else learns
        close((x.grad * count)[seen], expected[seen], 2e-4, f"{name} normalised")


@pytest.mark.parametrize("variant", ["shift5", "ref"])
@pytest.mark.parametrize("path", cases("dmd"))
def test_critic(path: Path, variant: str) -> None:
    spec, tensors = read(path)
    level = look_up(spec["timestep_shift"])
    inside = level if variant == "shift5" else look_up(8.0)
    for name in spec["critic_cases"]:
        fake = score_networks(path, spec)["fake"]
        x, noise = tensors[f"{name}.x"], tensors[f"{name}.noise"]
        sigma = told(spec, tensors[f"{name}.t_raw"], x.shape[1])
        noisy = flow.noised(x, noise, level(sigma))
        text = padded(tensors[f"{name}.cond"], spec).expand(len(x), -1, -1)
        clean = reference_score(fake, text, sigma, inside)(noisy, sigma)
        loss = losses.velocity(flow.velocity_of(noisy, clean, level(sigma)), x, noise)
        loss.backward()
        expected = tensors[f"{variant}.{name}.critic_loss"].float().reshape(1)
        torch.testing.assert_close(loss.detach().reshape(1), expected, rtol=1e-5, atol=0)
        norm = torch.nn.utils.get_total_norm([p.grad for p in fake.parameters() if p.grad is not None])
        relatively_close(norm.reshape(1), tensors[f"{variant}.{name}.critic_grad_norm"].reshape(1), f"{name} norm")
        if variant == "ref":  # the other keeps its norm only
            compare_gradients(fake, tensors, f"{variant}.{name}.critic_grad.")
