"""How fast the engine is, and how close to its floor.

    python infer/bench.py --json bench.json                      random weights: 12 layers x 384, rolling, 5 steps
    python infer/bench.py --model tiny --seconds 20              a model folder, decoding included
    python infer/bench.py --dtype bfloat16 --compile             the same, compiled

efficiency = time of the same linear layers and attention calls, run bare at the same shapes, divided by our time; both
measured side by side in this process, tick by tick. `--apart` also times the clean pass as a call of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollforce
from rollforce.cache import KVCache, Shape, Sink, Window
from rollforce.layout import chunkwise, rolling
from rollforce.machine import peak_mb, resident_mb
from rollforce.models.transformer import HALVES, TransformerConfig, VideoTransformer
from rollforce.noise import Noise
from rollforce.rollout import Rollout, Stepping
from rollforce.schedule import linear, warped


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    report = {"environment": environment(args)} | (bench_model(args) if args.model else bench_engine(args))
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


# -- the engine with random weights ----------------------------------------------------------------------


@torch.no_grad()
def bench_engine(args: argparse.Namespace) -> dict[str, Any]:
    dtype = getattr(torch, args.dtype)
    model = random_model(args, dtype)
    if args.compile:
        model.compile_blocks()
    rollout = begin(args, model, dtype, ride=True)
    begun = perf_counter()
    run(rollout, chunks=1)
    first = perf_counter() - begun
    run(rollout, chunks=args.warmup)

    calls = recorded(model, rollout)
    kernel_only = Bare(calls, dtype)
    pairs = [(seconds(lambda: run(rollout, chunks=1)), kernel_only.time()) for _ in range(args.chunks)]
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    report = {
        "efficiency": round(statistics.median(floor / time for time, floor in pairs), 3),
        "seconds_per_chunk": round(ours, 4),
        "floor_seconds_per_chunk": round(bare, 4),
        "ttff_s": round(first, 4),
        "denoise_fps": round(args.chunk * 4 / ours, 1),
        "end_to_end_fps": None,  # random weights have no autoencoder; see --model
        "shares": kernel_only.shares(ours),
        "peak_rss_mb": round(peak_mb(), 1),
    }
    return report | (riding(args, model, dtype) if args.apart else {})


def random_model(args: argparse.Namespace, dtype: torch.dtype) -> VideoTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_attention_heads=args.heads, attention_head_dim=args.dim // args.heads, num_layers=args.layers,
        ffn_dim=args.ffn or 4 * args.dim, in_channels=16, out_channels=16, text_dim=128,
    )  # fmt: skip
    return VideoTransformer(config).to(args.device, dtype).eval().requires_grad_(False)


def begin(args: argparse.Namespace, model: VideoTransformer, dtype: torch.dtype, ride: bool) -> Rollout:
    """A stream with the usual memory: sink and window of one chunk each, or as asked."""
    config, side = model.config, round(args.tokens**0.5)
    ladder = warped(linear(args.steps), 5.0)
    layout = (rolling if args.layout == "rolling" else chunkwise)(ladder, args.chunk)
    shape = Shape(config.num_layers, 1, config.num_attention_heads, side * side, config.attention_head_dim)
    cache = KVCache([Sink(args.sink), Window(args.window)], shape, layout.slots, dtype, args.device)
    condition = model.condition(torch.randn(1, args.text, config.text_dim, device=args.device, dtype=dtype))
    noise = Noise.of(0, (config.in_channels, 2 * side, 2 * side))
    return Rollout(model, condition, cache, layout, noise, Stepping(ride=ride))


def run(rollout: Rollout, chunks: int) -> None:
    for _ in range(chunks):
        while True:
            rollout.tick()
            if rollout.commit() is not None:
                break
    if rollout.cache.keys.is_cuda:
        torch.cuda.synchronize()


def riding(args: argparse.Namespace, model: VideoTransformer, dtype: torch.dtype) -> dict[str, Any]:
    """The clean pass riding along against a call of its own, side by side, with the 95 % interval of the median."""
    together, apart = (begin(args, model, dtype, ride=ride) for ride in (True, False))
    for rollout in (together, apart):
        run(rollout, args.warmup + 1)
    pairs = []
    for turn in range(args.chunks):  # who goes first alternates: a machine that slows down favours nobody
        order = (together, apart) if turn % 2 else (apart, together)
        took = {id(rollout): seconds(lambda r=rollout: run(r, 1)) for rollout in order}  # type: ignore[misc]
        pairs.append((took[id(together)], took[id(apart)]))
    gains = sorted(two / one for one, two in pairs)
    low, high = round(len(gains) / 2 - len(gains) ** 0.5), round(len(gains) / 2 + len(gains) ** 0.5)
    return {
        "riding_speedup": round(statistics.median(gains), 3),
        "riding_speedup_95": [round(gains[max(0, low)], 3), round(gains[min(len(gains) - 1, high)], 3)],
        "apart_seconds_per_chunk": round(statistics.median(b for _, b in pairs), 4),
    }


# -- the floor: the same matrix products, bare -------------------------------------------------------------------


def recorded(model: VideoTransformer, rollout: Rollout) -> list[tuple[str, tuple[Any, ...]]]:
    """Which linear layers and attention calls one chunk makes, with their shapes."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    attend = model.attend

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        calls.append(("attention", (q.shape, k.shape)))
        return attend(q, k, v, mask)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        calls.append(("linear", (inputs[0].numel() // inputs[0].shape[-1], module.in_features, module.out_features)))

    halves, model.halves = model.halves, HALVES  # hooks see eager modules only; shapes are the same
    handles = [part.register_forward_pre_hook(watch) for part in model.modules() if isinstance(part, nn.Linear)]
    model.attend = watched
    run(rollout, chunks=1)
    model.attend, model.halves = attend, halves
    for handle in handles:
        handle.remove()
    return calls


class Bare:
    """Replays recorded calls on random tensors. Each call has its own weights, as in the model."""

    def __init__(self, calls: list[tuple[str, tuple[Any, ...]]], dtype: torch.dtype) -> None:
        self.parts: dict[str, list[Callable[[], Tensor]]] = {"linear": [], "attention": []}
        for kind, sizes in calls:
            self.parts[kind].append(self._linear(sizes, dtype) if kind == "linear" else self._attention(sizes, dtype))

    @staticmethod
    def _linear(sizes: tuple[Any, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
        rows, inside, outside = sizes
        x, weight, bias = (
            torch.randn(rows, inside, dtype=dtype),
            torch.randn(outside, inside, dtype=dtype),
            torch.randn(outside, dtype=dtype),
        )
        return lambda: F.linear(x, weight, bias)

    @staticmethod
    def _attention(sizes: tuple[Any, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
        q, k, v = (torch.randn(size, dtype=dtype) for size in (sizes[0], sizes[1], sizes[1]))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    def time(self) -> float:
        """Seconds for all calls; also remembered per part."""
        self.last = {
            kind: seconds(lambda calls=calls: [call() for call in calls])  # type: ignore[misc]
            for kind, calls in self.parts.items()
        }
        return sum(self.last.values())

    def shares(self, ours: float) -> dict[str, float]:
        """Shares of our time that the bare parts would take; the rest is norms, modulation, RoPE, memory and Python."""
        shares = {kind: round(time / ours, 3) for kind, time in self.last.items()}
        return shares | {"rest": round(1 - sum(shares.values()), 3)}


# -- a whole model -------------------------------------------------------------------------------------------


def bench_model(args: argparse.Namespace) -> dict[str, Any]:
    begun = perf_counter()
    model = rollforce.load(
        args.model, stream=args.stream, device=args.device, dtype=args.dtype, threads=args.threads or None
    )
    loaded = perf_counter()
    if args.compile:
        model.transformer.compile_blocks()
    denoise, decode, memory, frames, first = [], [], [], 0, 0.0
    with model.session(args.prompt) as session:
        for chunk in session.stream(args.seconds):
            first = first or perf_counter() - loaded
            denoise.append(chunk.timings.denoise_s)
            decode.append(chunk.timings.decode_s)
            memory.append(resident_mb())
            frames += len(chunk.frames)
    total = perf_counter() - loaded
    times = [sum(pair) for pair in zip(denoise, decode, strict=True)]
    minute = round(60 * model.fps / model.frames_per_chunk)
    return {
        "efficiency": None,
        "seconds_per_chunk": round(statistics.median(times), 4),
        "load_s": round(loaded - begun, 3),
        "ttff_s": round(first, 3),
        "denoise_fps": round(frames / sum(denoise), 1),
        "end_to_end_fps": round(frames / total, 1),
        "times_real_time": round(frames / total / model.fps, 2),
        "shares": {"denoise": round(sum(denoise) / total, 3), "decode": round(sum(decode) / total, 3)},
        "peak_rss_mb": round(peak_mb(), 1),
    } | (steadiness(times, memory, minute) if len(times) >= 3 * minute else {})


def steadiness(times: list[float], memory: list[float], minute: int) -> dict[str, float]:
    """Does a long stream slow down or grow? Chunk times of the last minute and the second; memory after the first."""
    second, last = times[minute : 2 * minute], times[-minute:]
    return {
        "last_to_second_minute": round(statistics.median(last) / statistics.median(second), 4),
        "rss_growth_mb": round(max(memory[minute:]) - memory[minute - 1], 1),
    }


# -- odds and ends ---------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any]) -> float:
    begun = perf_counter()
    work()
    return perf_counter() - begun


def environment(args: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    return {
        "machine": platform.machine(), "processor": processor(), "threads": torch.get_num_threads(), "gpu": gpu,
        "torch": torch.__version__, "python": platform.python_version(), "commit": commit, "settings": settings,
    }  # fmt: skip


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def show(report: dict[str, Any]) -> None:
    for name, value in report.items():
        print(f"{name:24} {value}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", help="a bundled model or folder; without it random weights of the sizes below")
    parser.add_argument("--stream", help="stream preset for --model")
    parser.add_argument("--prompt", default="a red ball bounces over green hills")
    parser.add_argument("--seconds", type=float, default=20)
    for name, value in {"dim": 384, "layers": 12, "heads": 6, "ffn": 0, "tokens": 64, "steps": 5, "chunk": 3,
                        "sink": 3, "window": 3, "text": 24, "chunks": 20, "warmup": 8,
                        "threads": 0}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--layout", choices=["rolling", "chunkwise"], default="rolling")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--apart", action="store_true", help="also time the clean pass as a call of its own")
    return parser.parse_args()


if __name__ == "__main__":
    main()
