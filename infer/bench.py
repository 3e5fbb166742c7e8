"""How fast the engine is, and how close to its floor.

    python infer/bench.py --model wan-1.3b --random-weights --case all            on a GPU: the published streams
    python infer/bench.py --model wan-1.3b --random-weights --case all --dry-run  what that would take, anywhere
    python infer/bench.py --model wan-1.3b --random-weights --case all --shrink 12 --device cpu    the same, small
    python infer/bench.py --model wan-1.3b --train-step --latents 21,27           one step of distillation
    python infer/bench.py --model tiny --seconds 20                               a model folder, decoding included
    python infer/bench.py --json bench.json                      random weights: 12 layers x 384, rolling, 5 steps
    python infer/bench.py --case memory --threads 1 --json m.json  every memory policy beside plain sink + window
    python infer/bench.py --model tiny --case together           several streams at once beside one alone

floor = operations of the matrix products / the rate of a large one measured here + those of attention / the rate of
its largest call measured here; `of floor` is that over our time. `efficiency` is stricter: the time of the same linear
layers and attention calls, run bare at the same shapes, over our time. `--apart` also times the clean pass as a call
of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from rollforce.cache.head_groups import write_labels
from rollforce.cache.policies import Sink, Window
from rollforce.checkpoints.outputs import write_whole
from rollforce.engine.flow import linear, warped
from rollforce.engine.settings import LayoutSettings, StreamSettings
from rollforce.errors import RollforceError, call_main
from rollforce.evaluation.speed import floor, multi_stream, policies, report, streaming
from rollforce.evaluation.speed.cases import FRAMES, MODELS, Case, Setting, parse_cases, parse_sizes, shrink
from rollforce.evaluation.speed.training import measure_step
from rollforce.models.transformer.transformer import TransformerConfig
from rollforce.video.duration import duration_argument
from rollforce.video.values import check_arguments, check_threads


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    check_arguments(args, counts=("dim", "layers", "heads", "tokens", "steps", "chunk", "text", "warm", "shrink"),
                    seconds=("seconds",))  # fmt: skip
    if args.threads:
        torch.set_num_threads(check_threads(args.threads))
    told: dict[str, Any] = {"environment": report.environment(plain_arguments(args)), "results": []}
    print(*report.header(told["environment"]), sep="\n")
    try:
        for result in results(args):
            told["results"].append(result)
            keep(told, args.json)
    except RollforceError as error:
        parser.error(str(error))
    columns = report.PLANNED if args.dry_run else report.TRAINING if args.train_step else report.STREAMING
    columns = {"memory": dict(policies.COLUMNS), "together": multi_stream.COLUMNS}.get(args.case, columns)
    print(*report.table(told["results"], columns), sep="\n")


def results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield results one after the other, so that what is done is kept if the next one fails."""
    if args.case == "together":
        yield from measure_loads(args)
        return
    if args.model and not (args.random_weights or args.train_step or args.dry_run):
        yield bench_model(args)
        return
    if args.case == "memory":
        yield from memory(args)
        return
    for name, setting, case in list_settings(args):
        size = f"{setting.size[1]}x{setting.size[0]}"
        print(f"{name} {case.name}: {report.describe_setting(setting)}", flush=True)
        about = {"model": name, "size": size, "switches": report.describe_setting(setting)}
        for result in measure_setting(args, setting, case):
            print(f"    {json.dumps(round_figures(result))}", flush=True)
            yield about | result | compare_published(name, setting, case, result)
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def measure_setting(args: argparse.Namespace, setting: Setting, case: Case) -> Iterator[dict[str, Any]]:
    if args.dry_run:
        bytes_of = {part.name: part.bytes for part in floor.estimate_memory(case, setting)}
        tflop = {kind: count / 1e12 for kind, count in floor.count_operations(case, setting).items()}
        yield {"case": case.name, "tflop": tflop, "bytes": bytes_of, "needs_gb": sum(bytes_of.values()) / 1e9}
        return
    if args.train_step:
        for latents in (int(count) for count in args.latents.split(",")):
            for checkpointing in (True, False):
                yield measure_step(case, setting, latents, checkpointing, args.chunks or 3)
        return
    chunks = args.chunks or case.chunks
    autoencoder = streaming.random_autoencoder(args.decoder, setting) if args.decoder else None
    try:
        result = streaming.measure_case(case, setting, chunks, autoencoder)
        yield result | (streaming.compare_riding(case, setting, chunks) if args.apart else {})
    except torch.cuda.OutOfMemoryError:
        yield {"case": case.name, "out_of_memory": True}


def compare_published(name: str, setting: Setting, case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """Return the published and the wanted frames a second of this very run, if any, and what the latter take."""
    if (name, sorted(setting.size)) != ("wan-1.3b", [480, 832]) or not case.target or "tflop" not in result:
        return {}
    frames = FRAMES * case.stream.layout.chunk
    return {"published_fps": case.published, "target_fps": case.target,
            "target_tflop_per_s": sum(result["tflop"].values()) * case.target / frames}  # fmt: skip


def list_settings(args: argparse.Namespace) -> Iterator[tuple[str, Setting, Case]]:
    """Yield every model at every size in every case; without a model, what the other options describe."""
    name = args.device or ("cuda" if torch.cuda.is_available() or args.dry_run else "cpu")
    device = torch.device(name)
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    where = {"dtype": dtype, "device": device, "attention": args.attention, "compile": args.compile,
             "graphs": args.graphs, "ride": not args.no_ride, "quantize": args.quantize}  # fmt: skip
    if not args.model:
        yield "engine", Setting(*engine_sizes(args), text=args.text, **where), stream(args)
        return
    for model in args.model.split(","):
        if model not in MODELS:
            raise SystemExit(f"--random-weights and --dry-run: there is no model {model!r}. Use {', '.join(MODELS)}.")
        for size in parse_sizes(args.size):
            config, pixels = shrink(MODELS[model], size, args.shrink)
            for case in parse_cases(args.case):
                yield model, Setting(config, pixels, text=max(8, 512 // args.shrink), **where), case


# -- a stream of any sizes -----------------------------------------------------------------------------------------


def engine_sizes(args: argparse.Namespace) -> tuple[TransformerConfig, tuple[int, int]]:
    """Return a transformer of the sizes asked for, and the picture that has so many tokens a latent."""
    config = TransformerConfig(
        num_attention_heads=args.heads, attention_head_dim=args.dim // args.heads, num_layers=args.layers,
        ffn_dim=args.ffn or 4 * args.dim, in_channels=16, out_channels=16, text_dim=128,
    )  # fmt: skip
    side = 16 * round(args.tokens**0.5)
    return config, (side, side)


def stream(args: argparse.Namespace) -> Case:
    """Return the usual memory: sink and window of one chunk each, or as asked."""
    layout = LayoutSettings(args.layout, args.chunk, warped(linear(args.steps), 5.0))
    return Case(args.layout, StreamSettings(layout, (Sink(args.sink), Window(args.window))))


def memory(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every memory policy, chunkwise, in turn; `--window` latents of the past in plain memory (default 12)."""
    setting = next(setting for _, setting, _ in list_settings(args))
    print(report.describe_setting(setting), flush=True)
    layout = LayoutSettings("chunkwise", args.chunk, warped(linear(args.steps), 5.0))
    with tempfile.TemporaryDirectory() as folder:
        config = setting.config
        thirds = policies.label_every_third(config.num_layers, config.num_attention_heads)
        labels = write_labels(Path(folder) / "heads.json", thirds, "every third head")
        found = policies.policies(layout, max(args.window, 12), 4, labels)
        yield from policies.measure(found, setting, args.chunks or 21)


# -- a whole model -------------------------------------------------------------------------------------------


def bench_model(args: argparse.Namespace) -> dict[str, Any]:
    import rollforce
    from rollforce.evaluation.process import peak_mb, resident_mb

    begun = perf_counter()
    model = rollforce.load(args.model, stream=args.stream, device=args.device or "auto", dtype=args.dtype or "auto",
                           threads=args.threads or None)  # fmt: skip
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
        "model": args.model, "case": args.stream or "as trained", "size": f"{model.size[1]}x{model.size[0]}",
        "seconds_per_chunk": statistics.median(times), "load_s": loaded - begun, "first_chunk_s": first,
        "denoise_fps": frames / sum(denoise), "end_to_end_fps": frames / total,
        "times_real_time": frames / total / model.fps, "decode_seconds_per_chunk": statistics.median(decode),
        "shares": {"denoise": sum(denoise) / total, "decode": sum(decode) / total}, "peak_gb": peak_mb() / 1e3,
    } | (steadiness(times, memory, minute) if len(times) >= 3 * minute else {})  # fmt: skip


def measure_loads(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure several streams of a model at once, apart and together, on one core and on all."""
    import rollforce
    from rollforce.streaming.model import Model

    model = rollforce.load(args.model or "tiny", stream=args.stream, device=args.device or "auto")
    cores = args.threads or os.cpu_count() or 1

    def begin(load: multi_stream.StreamLoad) -> list[list[multi_stream.ChunkStream]]:
        here: Model = dataclasses.replace(model, threads=load.threads)
        batch = here.batch(lanes=load.pulled_by) if load.together else None
        streams = [here.session(args.prompt, seed, batch=batch).stream() for seed in range(load.streams)]
        return [streams[lane :: load.pulled_by] for lane in range(load.pulled_by)]

    found = multi_stream.list_loads([int(count) for count in args.counts.split(",")], cores)
    return multi_stream.measure(found, begin, args.warm, args.chunks or 8)


def steadiness(times: list[float], memory: list[float], minute: int) -> dict[str, float]:
    """Return whether a long stream slows down or grows: its last minute to its second, memory after the first."""
    second, last = times[minute : 2 * minute], times[-minute:]
    return {
        "last_to_second_minute": round(statistics.median(last) / statistics.median(second), 4),
        "rss_growth_mb": round(max(memory[minute:]) - memory[minute - 1], 1),
    }


# -- odds and ends ---------------------------------------------------------------------------------------


def keep(told: dict[str, Any], path: Path | None) -> None:
    if path:
        write_whole(path, json.dumps(told, indent=2) + "\n")


def round_figures(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: round_figures(part) for name, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def plain_arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", help=f"random weights, dry run: {', '.join(MODELS)}; else a model or folder")
    parser.add_argument("--random-weights", action="store_true", help="weights made on the device, nothing loaded")
    parser.add_argument("--counts", default="1,2,4,8", help="of streams at once, for --case together")
    parser.add_argument("--case", default="all",
                        help="all, memory, together, or: rolling5, chunk4, longlive, chunk2, forever")
    parser.add_argument("--size", default="832x480", help="WIDTHxHEIGHT, several with commas")
    parser.add_argument("--shrink", type=int, default=1, help="divide layers, heads, widths and sides by this")
    parser.add_argument("--dry-run", action="store_true", help="say what a run would take; run nothing")
    parser.add_argument("--train-step", action="store_true", help="one step of distillation instead of a stream")
    parser.add_argument("--latents", default="21,27", help="lengths of the videos of --train-step")
    parser.add_argument("--decoder", choices=["wan", "taehv"], help="decode beside the ticks, with random weights too")
    parser.add_argument("--attention", default="sdpa", help="kernel by name; see models/transformer/attention.py")
    parser.add_argument("--quantize", choices=["int8", "fp8"], help="store the blocks' weights so (needs torchao)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--graphs", action="store_true", help="compile, and replay as CUDA graphs")
    parser.add_argument("--apart", action="store_true", help="also time the clean pass as a call of its own")
    parser.add_argument("--no-ride", action="store_true", help="only that: every clean pass is a call of its own")
    parser.add_argument("--stream", help="stream preset for a model folder")
    parser.add_argument("--prompt", default="a red ball bounces over green hills")
    parser.add_argument("--seconds", type=duration_argument, default=20)
    for name, value in {"dim": 384, "layers": 12, "heads": 6, "ffn": 0, "tokens": 64, "steps": 5, "chunk": 3,
                        "sink": 3, "window": 3, "text": 24, "chunks": 0, "threads": 0, "warm": 8}.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--layout", choices=["rolling", "chunkwise"], default="rolling")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU")
    parser.add_argument("--device", help="default: cuda if there is one")
    return parser


if __name__ == "__main__":
    call_main(main)
