"""Parity with the papers' own code: numbers it produced with small random weights (see tests/golden/README.md).

Every case is found by its file's prefix; sizes, lengths, batch, seeds and step lists come from the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import (
    FORWARD,
    ROLLOUT,
    GoldenNoise,
    arena,
    cases,
    close,
    context,
    ladder_of,
    model_of,
    padded,
    read,
    rolling_forcing_memory,
    video_order,
)
from torch import Tensor

from rollforce.cache.commit_plan import Tier
from rollforce.cache.kv_cache import CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Sink, Window
from rollforce.cache.visibility import Visibility
from rollforce.engine import flow
from rollforce.engine.layout import chunkwise, rolling
from rollforce.engine.rollout import Rollout, Stepping, index_range
from rollforce.models.transformer.transformer import Condition, VideoTransformer
from rollforce.training.causal_masking import additive, block_causal, teacher_forcing

# -- one call -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", cases("wan_bidirectional"))
def test_bidirectional(path: Path) -> None:
    spec, tensors = read(path)
    model = model_of(path, spec)
    names = sorted({key.split(".")[0] for key in tensors if key.endswith(".x")})
    assert names
    for name in names:
        x = video_order(tensors[f"{name}.x"])
        sigma = (tensors[f"{name}.t"] / 1000)[:, None].expand(-1, x.shape[1])
        condition = model.condition(context(tensors, spec, f"{name}.ctx"))
        out = model(x, sigma, index_range(0, x.shape[1]), condition)
        close(video_order(out), tensors[f"{name}.out"], FORWARD, name)


@pytest.mark.parametrize("path", cases("causal_train"))
def test_training_masks(path: Path) -> None:
    spec, tensors = read(path)
    model = model_of(path, spec)
    x, sigma = video_order(tensors["x"]), tensors["t_per_frame"] / 1000
    condition = model.condition(context(tensors, spec))
    count, tokens = x.shape[1], x.shape[-2] * x.shape[-1] // model.config.patch**2
    seen = 0
    for name, case in spec["cases"].items():
        chunk, local = case["num_frame_per_block"], case["local_attn_size"]
        index = index_range(0, count)
        if case["teacher_forcing"]:
            clean_sigma = tensors["aug_t"] / 1000 if case["uses_aug_t"] else torch.zeros_like(sigma)
            doubled = torch.cat([video_order(tensors["clean_x"]), x], dim=1)
            mask = additive(teacher_forcing(count, chunk, tokens))
            out = model(doubled, torch.cat([clean_sigma, sigma], 1), torch.cat([index, index]), condition, mask=mask)[
                :, count:
            ]
        else:
            mask = additive(block_causal(count, chunk, tokens, None if local == -1 else local))
            out = model(x, sigma, index, condition, mask=mask)
        close(video_order(out), tensors[f"{name}.out"], FORWARD, name)
        seen += 1
    assert seen == sum(key.endswith(".out") for key in tensors)


# -- calls with a cache -----------------------------------------------------------------------------------------------


def replay(
    spec: dict[str, Any], tensors: dict[str, Tensor], model: VideoTransformer, cache: KVCache, stepping: Stepping
) -> None:
    """Walk a list of calls. A call commits if it is the last of its kind for its latents: others are overwritten."""
    condition = model.condition(context(tensors, spec))
    calls = spec["calls"]
    writes = [call for call in calls if call.get("updating_cache", True)]
    last = {call["start_frame"]: call["call"] for call in writes}
    for call in calls:
        name, start = f"call{call['call']:02d}", call["start_frame"]
        x, sigma = video_order(tensors[f"{name}.x"]), tensors[f"{name}.t"] / 1000
        updating = call.get("updating_cache", False)
        sight = stepping.commit if updating else stepping.denoise
        group = LatentGroup(start, x.shape[1], sight, commit=last[start] == call["call"])
        out = model(x, sigma, index_range(start, x.shape[1]), condition, CallMemory(cache, [group]))
        close(video_order(out), tensors[f"{name}.out"], FORWARD, name)


@pytest.mark.parametrize("path", cases("causal_sf"))
def test_self_forcing_calls(path: Path) -> None:
    spec, tensors = read(path)
    model = model_of(path, spec)
    x = tensors["call00.x"]
    cache = arena(model, self_forcing_tiers(spec, x.shape[2]), x.shape[0], x, flight=x.shape[2])
    with torch.no_grad():
        replay(
            spec, tensors, model, cache, Stepping(Visibility(positions="absolute"), Visibility(positions="absolute"))
        )


def self_forcing_tiers(spec: dict[str, Any], chunk: int) -> list[Tier]:
    """The reference's cache holds `local_attn_size` latents, the chunk in work among them; -1: as long as the table."""
    size = spec["kv_cache_frames"] if spec["local_attn_size"] == -1 else spec["local_attn_size"]
    return [Sink(spec["sink_size"]), Window(size - spec["sink_size"] - chunk)]


@pytest.mark.parametrize("path", cases("causal_rf"))
def test_rolling_forcing_calls(path: Path) -> None:
    spec, tensors = read(path)
    model = model_of(path, spec)
    x = tensors["call00.x"]
    chunk = spec["block_frames"]
    tiers, stepping = rolling_forcing_memory(spec, chunk)
    with torch.no_grad():
        replay(
            spec,
            tensors,
            model,
            arena(model, tiers, x.shape[0], x, flight=max(call["frames"] for call in spec["calls"])),
            stepping,
        )


# -- whole rollouts ---------------------------------------------------------------------------------------------------


def prepared(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], VideoTransformer, Condition]:
    spec, tensors = read(path)
    model = model_of(path, spec)
    batch = tensors["noise"].shape[0]
    return spec, tensors, model, model.condition(padded(tensors["emb"], spec).expand(batch, -1, -1))


@pytest.mark.parametrize("ride", [True, False], ids=["riding", "apart"])
@pytest.mark.parametrize("path", cases("self_forcing"))
@torch.no_grad()
def test_self_forcing_rollout(path: Path, ride: bool) -> None:
    spec, tensors, model, condition = prepared(path)
    noise, chunk = tensors["noise"], spec["num_frame_per_block"]
    cache = arena(model, self_forcing_tiers(spec, chunk), noise.shape[0], noise, flight=chunk)
    stepping = Stepping(
        Visibility(positions="absolute"),
        Visibility(positions="absolute"),
        context_sigma=spec["context_noise"] / 1000,
        ride=ride,
    )
    layout = chunkwise(ladder_of(spec, tensors), chunk)
    rollout = Rollout(model, condition, cache, layout, GoldenNoise(tensors, chunk), stepping, length=noise.shape[1])
    latents, estimates = [], []
    while not rollout.done:
        estimates.append(rollout.tick().clean_BTCHW)
        if (finished := rollout.commit()) is not None:
            latents.append(finished.latents_BTCHW)
    close(torch.cat(latents, 1), tensors["latents"], ROLLOUT, "latents")
    if "x0_pred" in tensors:
        expected = tensors["x0_pred"].flatten(0, 1)
        close(torch.stack([estimate[0] for estimate in estimates]), expected, ROLLOUT, "clean estimates")


@pytest.mark.parametrize("ride", [True, False], ids=["riding", "apart"])
@pytest.mark.parametrize("path", cases("rolling_forcing"))
@torch.no_grad()
def test_rolling_forcing_rollout(path: Path, ride: bool) -> None:
    spec, tensors, model, condition = prepared(path)
    noise, chunk = tensors["noise"], spec["num_frame_per_block"]
    ladder = ladder_of(spec, tensors)
    tiers, stepping = rolling_forcing_memory(spec, chunk)
    stepping = Stepping(stepping.denoise, stepping.commit, context_sigma=spec["context_noise"] / 1000, ride=ride)
    cache = arena(model, tiers, noise.shape[0], noise, flight=chunk * len(ladder))
    rollout = Rollout(
        model, condition, cache, rolling(ladder, chunk), GoldenNoise(tensors, chunk), stepping, length=noise.shape[1]
    )
    latents, window = [], 0
    while rollout.admit():
        name = f"window{window:02d}"
        if f"{name}.noisy_input" in tensors:
            close(rollout.x, tensors[f"{name}.noisy_input"], ROLLOUT, f"{name} input")
        tick = rollout.tick()
        if f"{name}.denoised_pred" in tensors:
            close(torch.tensor(tick.sigma_T) * 1000, tensors[f"{name}.timestep"].float()[0], 1e-3, f"{name} levels")
            close(tick.clean_BTCHW, tensors[f"{name}.denoised_pred"], ROLLOUT, name)
        if (finished := rollout.commit()) is not None:
            latents.append(finished.latents_BTCHW)
        window += 1
    close(torch.cat(latents, 1), tensors["latents"], ROLLOUT, "latents")
    assert window == len(spec["windows"])


# -- scheduler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", cases("scheduler"))
def test_scheduler(path: Path) -> None:
    spec, tensors = read(path)
    x0, noise, velocity = (tensors[name][:, None] for name in ("x0", "noise", "flow"))  # one latent per sample
    for shift in spec["shifts"]:
        name = f"shift{shift:g}" if f"shift{shift:g}.sigmas" in tensors else f"shift{shift}"
        table = torch.tensor(
            [
                flow.shift_level(1 - i / len(tensors[f"{name}.sigmas"]), shift)
                for i in range(len(tensors[f"{name}.sigmas"]))
            ]
        )
        torch.testing.assert_close(table, tensors[f"{name}.sigmas"], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(table * 1000, tensors[f"{name}.timesteps"], rtol=1e-6, atol=1e-4)
        weight = flow.training_weight(table.double(), shift, len(table)).float()
        torch.testing.assert_close(weight, tensors[f"{name}.training_weights"], rtol=1e-4, atol=1e-5)
        for steps in spec["step_lists"]:
            expected = tensors[f"{name}.warped.{'_'.join(map(str, steps))}"]
            ladder = torch.tensor(flow.warped([step / 1000 for step in steps], shift)) * 1000
            torch.testing.assert_close(ladder, expected.float(), rtol=1e-6, atol=1e-4)
        sigma = tensors[f"{name}.sigma_used"][:, None]  # the reference's nearest table entry; ours is exact
        xt = flow.noised(x0, noise, sigma)
        torch.testing.assert_close(xt[:, 0], tensors[f"{name}.add_noise"], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            flow.clean_of(xt, velocity, sigma)[:, 0], tensors[f"{name}.flow_to_x0"], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            flow.velocity_of(xt, x0, sigma)[:, 0], tensors[f"{name}.x0_to_flow"], rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            flow.velocity_of(noise, x0, torch.ones_like(sigma))[:, 0],
            tensors[f"{name}.training_target"],
            rtol=1e-6,
            atol=1e-6,
        )
        euler_steps(tensors, name, table, velocity)
        warp = torch.tensor([flow.shift_level(t / 1000, shift) * 1000 for t in range(1000)]).clamp(20, 980)
        torch.testing.assert_close(warp, tensors[f"{name}.dmd_timestep_warp_of_0_999_clamped"], rtol=1e-5, atol=1e-3)


def euler_steps(tensors: dict[str, Tensor], name: str, table: Tensor, velocity: Tensor) -> None:
    """One step down the table. A quirk of the reference: if any sample is at the last entry, all of them step to 0."""
    expected, times = tensors[f"{name}.euler_step"], tensors[f"{name}.euler_step.t"]
    at = (table[None] * 1000 - times[:, None].float()).abs().argmin(dim=1)
    later = torch.zeros(len(at)) if (at + 1 >= len(table)).any() else table[(at + 1).clamp(max=len(table) - 1)]
    samples = tensors[f"{name}.add_noise"][-len(expected) :, None]
    out = flow.euler(samples, velocity[-len(expected) :], table[at][:, None], later[:, None])
    torch.testing.assert_close(out[:, 0], expected, rtol=1e-5, atol=1e-5)
