"""What this machine can do: versions, device, number formats, kernels, codecs, space; what is wrong, and its remedy."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from rollforce.config import resource
from rollforce.errors import CheckpointError, RollforceError
from rollforce.evaluation import process

_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def examine() -> dict[str, Any]:
    """Return all of it as plain data. `problems` stop a render, `warnings` do not; each says its remedy."""
    report: dict[str, Any] = {"versions": process.versions(), "problems": [], "warnings": []}
    for name, look in (("torch", _torch), ("video", _video), ("space", _space), ("models", _models),
                       ("extras", _extras)):
        report[name] = look(report)
    return report


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for section in ("versions", "torch", "video", "space", "models", "extras"):
        for i, (name, value) in enumerate(report[section].items()):
            table.add_row(section if i == 0 else "", name.replace("_", " "), _format(value))
    console.print(table)
    for problem in report["problems"]:
        console.print(Text(f"problem: {problem}", style="red"))
    for warning in report["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))
    if not report["problems"]:
        console.print('ready: rollforce render "a red ball bounces over green hills"')


def _torch(report: dict[str, Any]) -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a torch whose libraries do not load raises OSError
        report["problems"].append(f"torch cannot be imported ({error}). pip install torch")
        return {"usable": False}
    cuda = torch.cuda.is_available()
    if not cuda and _driver():
        built = torch.version.cuda
        why = (f"torch {torch.__version__} is CPU-only" if built is None
               else f"torch was built for CUDA {built}, which the driver may not support")
        report["warnings"].append(f"the driver knows a GPU, but {why}. See https://pytorch.org/get-started/locally")
    _torchvision(report, torch.__version__)
    device = "cuda" if cuda else "cpu"
    found = {"usable": True, "device": device, "dtype": "float32", "threads": torch.get_num_threads(),
             "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
             "attention": _attention(torch, device), "kernels": _kernels()}
    if cuda:
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_free_gb"] = round(torch.cuda.mem_get_info()[0] / 1e9, 1)
        found["dtype"] = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    else:
        found["cpu_flags"] = _cpu_flags()
        found["mps"] = torch.backends.mps.is_available()
    return found


def _kernels() -> list[str]:
    """What --attention takes here."""
    from rollforce.models.transformer.attention import available

    return [name for name, obstacle in available().items() if not obstacle]


def _attention(torch: Any, device: str) -> list[str]:
    """Scaled dot-product kernels that run here: each is tried, since being switched on does not mean being there."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    query = torch.zeros(1, 1, 16, 64, device=device, dtype=torch.bfloat16)
    usable = []
    for name in ("flash", "efficient", "cudnn"):
        try:
            with sdpa_kernel(SDPBackend.__members__[f"{name.upper()}_ATTENTION"]), process.no_warnings():
                scaled_dot_product_attention(query, query, query)
            usable.append(name)
        except RuntimeError:
            continue
    return [*usable, "math"]


def _video(report: dict[str, Any]) -> dict[str, Any]:
    try:
        import av
    except (ImportError, OSError) as error:
        report["problems"].append(f"PyAV cannot be imported ({error}). pip install av")
        return {"usable": False}
    codecs = [name for name in ("libx264", "mpeg4", "libvpx-vp9") if name in av.codecs_available]
    if "libx264" not in codecs:
        report["warnings"].append("this FFmpeg has no libx264: videos are written as mpeg4. pip install -U av")
    if not {"libx264", "mpeg4"} & set(codecs):
        report["problems"].append("this FFmpeg writes neither libx264 nor mpeg4. pip install -U av")
    return {"usable": True, "codecs": codecs, "ffmpeg": ".".join(map(str, av.library_versions["libavcodec"]))}


def _space(report: dict[str, Any]) -> dict[str, Any]:
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    if memory.available < 1e9:
        report["warnings"].append(f"only {memory.available / 1e9:.1f} GB of memory is free; the tiny model needs 0.7")
    if disk.free < 5e8:
        report["warnings"].append(f"only {disk.free / 1e9:.1f} GB is free in {Path.cwd()}")
    return {"memory_free_gb": round(memory.available / 1e9, 1), "memory_gb": round(memory.total / 1e9, 1),
            "disk_free_gb": round(disk.free / 1e9, 1)}


def _models(report: dict[str, Any]) -> dict[str, Any]:
    if report["problems"]:
        return {"bundled": "not looked for"}
    from rollforce.checkpoints.catalog import bundled, presets

    try:
        names, streams = bundled(), presets()
    except RollforceError as error:
        report["problems"].append(f"the installation is not whole: {error}")
        return {"bundled": []}
    for name in names:
        report["problems"] += [f"the bundled model {name} cannot stream: {reason} Reinstall rollforce."
                               for reason in _look_at(resource(f"assets/{name}"))]  # fmt: skip
    if not names:
        report["warnings"].append("no bundled model was found; give a folder: rollforce render ... --model FOLDER")
    return {"bundled": list(names), "streams": list(streams)}


def _look_at(folder: Path) -> tuple[str, ...]:
    """What is in the way of a model, by the same comparison that loading makes."""
    from rollforce.checkpoints.obstacles import obstacles
    from rollforce.checkpoints.parts import read_model

    try:
        return obstacles(read_model(folder))
    except CheckpointError as error:
        return (str(error),)


def _extras(report: dict[str, Any]) -> dict[str, Any]:
    """Which optional parts are installed."""
    wanted = {"wan": "ftfy", "quant": "torchao", "train": "tensorboard"}
    return {name: importlib.util.find_spec(module) is not None for name, module in wanted.items()}


def _torchvision(report: dict[str, Any], torch_version: str) -> None:
    """A torchvision of another build breaks every package that imports it; rollforce does not need it."""
    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        report["warnings"].append(f"torchvision {version} does not match torch {torch_version} ({error}). "
                                  "rollforce does not need it: pip uninstall torchvision")


def _driver() -> bool:
    """Whether an NVIDIA driver is there, asked without torch."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _cpu_flags() -> list[str]:
    """Instruction sets that decide how fast a CPU streams (Linux; empty elsewhere)."""
    if sys.platform != "linux":
        return []
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [flag for flag in _CPU_FLAGS if flag in flags]


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
