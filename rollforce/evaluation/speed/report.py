"""What was measured, as text: where and with what above, a short Markdown table last."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rollforce.evaluation.speed.cases import Setting


def environment(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the machine, versions, commit, and the settings asked for."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else None
    return {"machine": platform.machine(), "processor": processor(), "threads": torch.get_num_threads(), "gpu": gpu,
            "gpu_gb": memory,
            "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda, "torch": torch.__version__, "python": platform.python_version(),
            "commit": _first_line("git", "rev-parse", "--short", "HEAD"), "settings": settings}  # fmt: skip


def header(told: dict[str, Any]) -> list[str]:
    """Return the environment in a few lines."""
    where = told["gpu"] or f"CPU {told['processor']}, {told['threads']} thread(s)"
    driver = f", driver {told['driver']}, CUDA {told['cuda']}" if told["gpu"] else ""
    return [f"{where}{driver}, torch {told['torch']}, python {told['python']}, commit {told['commit'] or 'unknown'}"]


def describe_setting(setting: Setting) -> str:
    """Return sizes and switches in one line."""
    config, (height, width) = setting.config, setting.size
    switches = [name for name in ("compile", "graphs") if getattr(setting, name)]
    switches += [] if setting.ride else ["clean pass apart"]
    switches += [f"{setting.quantize} weights"] if setting.quantize else []
    return (f"{width}x{height}: {setting.grid.tokens_per_latent} tokens a latent; {config.num_layers} layers x "
            f"{config.width}, {config.num_attention_heads} heads, hidden {config.ffn_dim}; "
            f"{str(setting.dtype).removeprefix('torch.')}, attention {setting.attention}"
            f"{', ' if switches else ''}{', '.join(switches)}")  # fmt: skip


STREAMING = {"model": "model", "case": "case", "size": "size", "s/chunk": "seconds_per_chunk", "fps": "denoise_fps",
             "target": "target_fps", "first chunk s": "first_chunk_s", "first frame s": "first_frame_s",
             "peak GB": "peak_gb", "linear": "shares.linear", "attention": "shares.attention", "rest": "shares.rest",
             "TF/chunk": "tflop.all", "floor s": "floor_seconds_per_chunk", "of floor": "of_floor",
             "of bare": "efficiency", "decode s": "decode_seconds_per_chunk", "end-to-end fps": "end_to_end_fps"}
TRAINING = {"model": "model", "case": "case", "size": "size", "latents": "latents", "checkpointing": "checkpointing",
            "generator s": "generator_s", "GB": "generator_peak_gb", "critic s": "critic_s",
            "critic GB": "critic_peak_gb"}  # fmt: skip
PLANNED = {"model": "model", "case": "case", "size": "size", "linear TF": "tflop.linear",
           "attention TF": "tflop.attention", "TF/chunk": "tflop.all", "GB": "needs_gb", "target fps": "target_fps",
           "TF/s for it": "target_tflop_per_s"}  # fmt: skip


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> list[str]:
    """Return the lines of a Markdown table: titles to dotted names in the rows; without columns that no row has."""
    kept = {title: name for title, name in columns.items() if any(_at(row, name) is not None for row in rows)}
    lines = ["| " + " | ".join(kept) + " |", "|" + "---|" * len(kept)]
    return lines + ["| " + " | ".join(_cell(_at(row, name)) for name in kept.values()) + " |" for row in rows]


def _at(row: dict[str, Any], name: str) -> Any:
    outer, _, inner = name.partition(".")
    value = row.get(outer)
    if not inner or value is None:
        return value
    return sum(value.values()) if inner == "all" else value.get(inner)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def processor() -> str:
    """Return the CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _first_line(*command: str) -> str:
    """Return the first line that a command says, "" if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""
