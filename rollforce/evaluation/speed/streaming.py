"""One case, measured: seconds per chunk, time to the first one, memory, shares, and the distance to the floor."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Commit, Rollout
from rollforce.evaluation.speed import clock, floor
from rollforce.evaluation.speed.cases import FRAMES, Case, Setting
from rollforce.models.autoencoder.interface import Autoencoder
from rollforce.models.transformer.transformer import VideoTransformer
from rollforce.streaming.prefetch import Prefetcher
from rollforce.streaming.stream_state import ChunkResult


@torch.no_grad()
def random_model(setting: Setting, case: Case) -> VideoTransformer:
    """Return a model of random weights of the setting's sizes, made on its device in its dtype, ready to stream."""
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
def begin_rollout(model: VideoTransformer, setting: Setting, case: Case, ride: bool = True, text: Tensor | None = None,
                  length: int | None = None) -> Rollout:  # fmt: skip
    """Begin a stream of the case at its first latent, of `length` latents or endless, by a `text` or a random one."""
    config, grid, settings = setting.config, setting.grid, case.stream
    cache = settings.memory(config.shape(grid), setting.dtype, setting.device)
    if text is None:
        text = torch.empty(1, setting.text, config.text_dim, device=setting.device, dtype=setting.dtype).normal_()
    noise = Noise.of(0, (config.in_channels, grid.height, grid.width))
    stepping = replace(settings.stepping, ride=ride)
    return Rollout(model, model.condition(text), cache, settings.layout.build(), noise, stepping, length=length)


@torch.no_grad()
def next_chunk(rollout: Rollout) -> Commit:
    """Tick until a chunk is clean, and return it."""
    rollout.tick()
    while (finished := rollout.commit()) is None:
        rollout.tick()
    return finished


def chunks_until_steady(rollout: Rollout) -> int:
    """Return the number of chunks after which every further one costs the same: memory and buffer are full."""
    return rollout.cache.capacity // rollout.layout.shift + 2


def record_chunk(rollout: Rollout) -> list[floor.MatmulCall]:
    """Return the matrix products and attention calls of the next chunk."""
    with floor.record_calls(rollout.model) as calls:
        next_chunk(rollout)
    return calls


def measure_case(case: Case, setting: Setting, chunks: int, autoencoder: Autoencoder | None = None) -> dict[str, Any]:
    """Return all measurements of a case."""
    device = setting.device
    clock.reset_peak(device)
    model = random_model(setting, case)

    def make_first_chunk() -> Commit:
        return next_chunk(begin_rollout(model, setting, case, setting.ride))

    cold, warm = (clock.time_call(make_first_chunk, device) for _ in range(2))
    rollout = begin_rollout(model, setting, case, setting.ride)
    for _ in range(chunks_until_steady(rollout)):
        next_chunk(rollout)
    before = clock.peak_bytes(device)
    times = clock.time_calls(lambda: next_chunk(rollout), chunks, device)
    ours, peak = statistics.median(times), clock.peak_bytes(device)
    frames = FRAMES * rollout.layout.shift
    told = {"case": case.name, "seconds_per_chunk": ours, "denoise_fps": frames / ours, "first_chunk_s": warm,
            "first_chunk_cold_s": cold, "peak_gb": peak / 1e9, "peak_growth_mb": (peak - before) / 1e6,
            "times": spread(times)}  # fmt: skip
    told |= _measure_floor(rollout, setting, ours, chunks)
    if autoencoder is not None:
        told["first_frame_s"] = clock.time_call(
            lambda: autoencoder.decoder().decode(make_first_chunk().latents_BTCHW), device)  # from a prompt's vectors
        told |= measure_decoding(rollout, autoencoder, device, min(chunks, 20))
    return told


def _measure_floor(rollout: Rollout, setting: Setting, ours: float, chunks: int) -> dict[str, Any]:
    calls, attend, where = record_chunk(rollout), rollout.model.attend, (setting.dtype, setting.device)
    bare = floor.BareReplay(calls, attend, *where)
    bare.time()
    pairs = [(clock.time_call(lambda: next_chunk(rollout), setting.device), bare.time())
             for _ in range(min(chunks, 20))]  # fmt: skip
    counted = floor.flops(calls)
    rates = {"linear": floor.measure_matmul_rate(*where),
             "attention": floor.measure_attention_rate(calls, attend, *where)}  # fmt: skip
    least = sum(counted[kind] / rates[kind] for kind in counted)
    return {
        "shares": bare.shares(statistics.median(one for one, _ in pairs)),
        "tflop": {kind: count / 1e12 for kind, count in counted.items()},
        "tflop_per_s": {kind: rate / 1e12 for kind, rate in rates.items()},
        "floor_seconds_per_chunk": least, "of_floor": least / ours,
        "bare_seconds_per_chunk": statistics.median(alone for _, alone in pairs),
        "efficiency": statistics.median(alone / one for one, alone in pairs),  # side by side
    }  # fmt: skip


def measure_decoding(rollout: Rollout, autoencoder: Autoencoder, device: torch.device, chunks: int) -> dict[str, Any]:
    """Measure the seconds to decode a chunk alone, and frames a second with decoding beside the next ticks."""
    decoder, latents = autoencoder.decoder(), next_chunk(rollout).latents_BTCHW
    alone = clock.median_seconds(lambda: decoder.decode(latents), device)
    decoder = autoencoder.decoder()
    ahead = Prefetcher(lambda: ChunkResult(next_chunk(rollout), 0.0), device)
    frames: list[int] = []

    def decode_chunks(count: int) -> None:
        for _ in range(count):
            done = ahead.take(go_on=True)
            assert done.commit is not None
            with ahead.beside(done):
                frames.append(len(decoder.decode(done.commit.latents_BTCHW)))

    decode_chunks(2)
    took = clock.time_call(lambda: decode_chunks(chunks), device)
    ahead.close()
    return {"decode_seconds_per_chunk": alone, "end_to_end_fps": sum(frames[2:]) / took}


def compare_riding(case: Case, setting: Setting, chunks: int) -> dict[str, Any]:
    """Time the clean pass riding along against one of its own, side by side; 95 % interval of the median."""
    model = random_model(setting, case)
    pair = [begin_rollout(model, setting, case, ride) for ride in (True, False)]
    for rollout in pair:
        for _ in range(chunks_until_steady(rollout)):
            next_chunk(rollout)
    taken: list[tuple[float, float]] = []
    for turn in range(chunks):  # who goes first alternates: a machine that slows down favours nobody
        order = (0, 1) if turn % 2 else (1, 0)
        took = {which: clock.time_call(partial(next_chunk, pair[which]), setting.device) for which in order}
        taken.append((took[0], took[1]))
    gains = sorted(two / one for one, two in taken)
    low, high = (round(len(gains) / 2 + sign * len(gains) ** 0.5) for sign in (-1, 1))
    return {"riding_speedup": statistics.median(gains),
            "riding_speedup_95": [gains[max(0, low)], gains[min(len(gains) - 1, high)]],
            "apart_seconds_per_chunk": statistics.median(two for _, two in taken)}  # fmt: skip


def spread(times: list[float]) -> dict[str, float]:
    """Return whether a long stream slows down: medians of its first and last tenth, and the slowest chunk."""
    tenth = max(1, len(times) // 10)
    first, last = statistics.median(times[:tenth]), statistics.median(times[-tenth:])
    return {"first_tenth_s": first, "last_tenth_s": last, "last_to_first": last / first, "slowest_s": max(times)}


def random_autoencoder(kind: str, setting: Setting) -> Autoencoder:
    """Return an autoencoder with random weights: `taehv`, or `wan`, which needs diffusers."""
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

