"""One case, measured: seconds per chunk, time to the first one, memory, shares, and the distance to the floor."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Commit, Rollout
from rollforce.evaluation.speed import clock
from rollforce.evaluation.speed.cases import FRAMES, Case, Setting
from rollforce.evaluation.speed.floor import Bare, MatmulCall, attention_rate, flops, matmul_rate, recording
from rollforce.models.autoencoder.interface import Autoencoder
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.prefetch import Prefetcher
from rollforce.streaming.stream_state import ChunkResult


@torch.no_grad()
def random_model(setting: Setting, case: Case) -> VideoTransformer:
    """Random weights of the setting's sizes, made on its device in its dtype, ready to stream."""
    with torch.device("meta"):
        model = VideoTransformer(setting.config)
    model = model.to(setting.dtype).to_empty(device=setting.device).eval().requires_grad_(False)
    model.float32_islands = case.stream.float32_islands
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.normal_(0.0, 0.02)
        if "norm" in name and name.endswith("weight"):
            weight.add_(1.0)
    model.set_attention(setting.attention)
    if setting.quantize is not None:
        from rollforce.models.runtime.quantize import quantise

        quantise(model, setting.quantize)
    if setting.compile or setting.graphs:
        model.compile_blocks(graphs=setting.graphs)
    return model


@torch.no_grad()
def begin(model: VideoTransformer, setting: Setting, case: Case, ride: bool = True) -> Rollout:
    """A stream of the case from its first latent on."""
    config, grid, settings = setting.config, setting.grid, case.stream
    layout = settings.layout.build()
    shape = config.shape(grid)
    cache = settings.memory(shape, setting.dtype, setting.device)
    text = torch.empty(1, setting.text, config.text_dim, device=setting.device, dtype=setting.dtype)
    condition = model.condition(text.normal_())
    stepping = replace(settings.stepping, ride=ride)
    noise = Noise.of(0, (config.in_channels, grid.height, grid.width))
    return Rollout(model, condition, cache, layout, noise, stepping)


@torch.no_grad()
def chunk(rollout: Rollout) -> Commit:
    """Tick until a chunk is clean."""
    while True:
        rollout.tick()
        finished = rollout.commit()
        if finished is not None:
            return finished


def steady(rollout: Rollout) -> int:
    """Chunks after which every further one costs the same: the memory is full and the buffer too."""
    return rollout.cache.capacity // rollout.layout.shift + 2


def calls_of(rollout: Rollout) -> list[MatmulCall]:
    """The matrix products and attention calls of the next chunk."""
    with recording(rollout.model) as calls:
        chunk(rollout)
    return calls


def measure(case: Case, setting: Setting, chunks: int, autoencoder: Autoencoder | None = None) -> dict[str, Any]:
    """Everything that is told of a case."""
    device = setting.device
    clock.forget_peak(device)
    model = random_model(setting, case)
    cold = clock.seconds(lambda: chunk(begin(model, setting, case, setting.ride)), device)
    warm = clock.seconds(lambda: chunk(begin(model, setting, case, setting.ride)), device)
    rollout = begin(model, setting, case, setting.ride)
    for _ in range(steady(rollout)):
        chunk(rollout)
    before = clock.peak_bytes(device)
    times = clock.laps(lambda: chunk(rollout), chunks, device)
    ours, peak = statistics.median(times), clock.peak_bytes(device)
    frames = FRAMES * rollout.layout.shift
    told = {
        "case": case.name, "seconds_per_chunk": ours, "denoise_fps": frames / ours, "first_chunk_s": warm,
        "first_chunk_cold_s": cold, "peak_gb": peak / 1e9, "peak_growth_mb": (peak - before) / 1e6,
        "times": spread(times),
    }  # fmt: skip
    told |= _floor(rollout, setting, ours, chunks)
    if autoencoder is not None:
        told |= {"first_frame_s": clock.seconds(lambda: first_frames(model, setting, case, autoencoder), device)}
        told |= decoding(rollout, autoencoder, device, min(chunks, 20))
    return told


def first_frames(model: VideoTransformer, setting: Setting, case: Case, autoencoder: Autoencoder) -> None:
    """From a prompt's vectors to the first pictures."""
    autoencoder.decoder().decode(chunk(begin(model, setting, case, setting.ride)).latents_BTCHW)


def _floor(rollout: Rollout, setting: Setting, ours: float, chunks: int) -> dict[str, Any]:
    calls, attend = calls_of(rollout), rollout.model.attend
    bare = Bare(calls, attend, setting.dtype, setting.device)
    bare.time()
    pairs = [(clock.seconds(lambda: chunk(rollout), setting.device), bare.time()) for _ in range(min(chunks, 20))]
    counted = flops(calls)
    rates = {"linear": matmul_rate(setting.dtype, setting.device),
             "attention": attention_rate(calls, attend, setting.dtype, setting.device)}  # fmt: skip
    floor = sum(counted[kind] / rates[kind] for kind in counted)
    return {
        "shares": bare.shares(statistics.median(one for one, _ in pairs)),
        "tflop": {kind: count / 1e12 for kind, count in counted.items()},
        "tflop_per_s": {kind: rate / 1e12 for kind, rate in rates.items()},
        "floor_seconds_per_chunk": floor, "of_floor": floor / ours,
        "bare_seconds_per_chunk": statistics.median(alone for _, alone in pairs),
        "efficiency": statistics.median(alone / one for one, alone in pairs),  # side by side
    }  # fmt: skip


def decoding(rollout: Rollout, autoencoder: Autoencoder, device: torch.device, chunks: int) -> dict[str, Any]:
    """Seconds to decode a chunk alone, and frames a second with decoding beside the next ticks, as a session does."""
    decoder, latents = autoencoder.decoder(), chunk(rollout).latents_BTCHW
    alone = clock.median(lambda: decoder.decode(latents), device)
    decoder = autoencoder.decoder()
    ahead = Prefetcher(lambda: ChunkResult(chunk(rollout), 0.0), device)
    counts: list[int] = []

    def step() -> None:
        done = ahead.take(go_on=True)
        assert done.commit is not None
        with ahead.beside(done):
            counts.append(len(decoder.decode(done.commit.latents_BTCHW)))

    for _ in range(2):
        step()
    counts.clear()

    def walk() -> None:
        for _ in range(chunks):
            step()

    took = clock.seconds(walk, device)
    ahead.close()
    return {"decode_seconds_per_chunk": alone, "end_to_end_fps": sum(counts) / took}


def apart(case: Case, setting: Setting, chunks: int) -> dict[str, Any]:
    """The clean pass riding along against a call of its own, side by side, with the 95 % interval of the median."""
    model = random_model(setting, case)
    pair = [begin(model, setting, case, ride) for ride in (True, False)]
    for rollout in pair:
        for _ in range(steady(rollout)):
            chunk(rollout)
    taken: list[tuple[float, float]] = []
    for turn in range(chunks):  # who goes first alternates: a machine that slows down favours nobody
        order = (0, 1) if turn % 2 else (1, 0)
        took = {which: clock.seconds(lambda r=pair[which]: chunk(r), setting.device) for which in order}  # type: ignore[misc]
        taken.append((took[0], took[1]))
    gains = sorted(two / one for one, two in taken)
    low, high = round(len(gains) / 2 - len(gains) ** 0.5), round(len(gains) / 2 + len(gains) ** 0.5)
    return {
        "riding_speedup": statistics.median(gains),
        "riding_speedup_95": [gains[max(0, low)], gains[min(len(gains) - 1, high)]],
        "apart_seconds_per_chunk": statistics.median(two for _, two in taken),
    }


def spread(times: list[float]) -> dict[str, float]:
    """Does a long stream slow down? Medians of its first and last tenth, and the slowest chunk."""
    tenth = max(1, len(times) // 10)
    first, last = statistics.median(times[:tenth]), statistics.median(times[-tenth:])
    return {"first_tenth_s": first, "last_tenth_s": last, "last_to_first": last / first, "slowest_s": max(times)}


def random_autoencoder(kind: str, setting: Setting) -> Autoencoder:
    """An autoencoder with random weights: `taehv`, or `wan`, which needs diffusers."""
    if kind == "taehv":
        from rollforce.models.autoencoder.taehv import TaehvAutoencoder, TaehvConfig

        model: Any = TaehvAutoencoder(TaehvConfig())
    else:
        from diffusers import AutoencoderKLWan

        from rollforce.models.autoencoder.wan import WanAutoencoder

        model = WanAutoencoder(AutoencoderKLWan())
    for weight in model.parameters():
        weight.data = torch.randn_like(weight) * 0.02
    return model.to(setting.device, setting.dtype).eval().requires_grad_(False)

