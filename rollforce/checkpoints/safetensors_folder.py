"""Folders of safetensors as diffusers and transformers lay them out: one file, or numbered ones with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollforce.errors import CheckpointError

STEM = {"transformer": "diffusion_pytorch_model", "autoencoder": "diffusion_pytorch_model", "text": "model"}
LIMIT = 5_000_000_000  # bytes of one file
_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} if the file is missing or holds something else. CheckpointError."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, memory-mapped."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is damaged, not complete, or not safetensors: {error}.") from error


def metadata_of(path: Path) -> dict[str, str]:
    """The words that a file of safetensors carries beside its tensors; {} for other files."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_shards(paths: list[Path]) -> dict[str, Tensor]:
    """The tensors of all files, memory-mapped. CheckpointError if one is missing."""
    state: dict[str, Tensor] = {}
    if absent := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(
            f"{len(absent)} of {len(paths)} shards are missing in {paths[0].parent}: {', '.join(absent[:5])}. "
            "Download them again."
        )
    for path in paths:
        state |= read_safetensors(path)
    return state


def shards_of(path: Path) -> list[Path]:
    """All files that belong with `path`: an index, one numbered shard, or a file of its own."""
    if path.name.endswith(".index.json"):
        try:
            names = set(json.loads(path.read_text())["weight_map"].values())
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is not an index of safetensors: it has no weight_map.") from error
        return [path.parent / name for name in sorted(names)]
    if match := _NUMBERED.fullmatch(path.name):
        return [path.parent / f"{match[1]}-{n + 1:05}-of-{match[2]}.safetensors" for n in range(int(match[2]))]
    return [path]


def write_shards(
    state: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    *,
    dtype: torch.dtype | None = None,
    change: Change | None = None,
    limit: int = LIMIT,
) -> None:
    """Write `state` as {stem}.safetensors, or as numbered files of at most `limit` bytes with an index.

    Only one file's tensors are in memory at a time, if `state` is memory-mapped; `change` is done to each file's, then
    they are cast to `dtype` (None: each keeps its own).
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    groups = _grouped(state, limit, dtype)
    names = [f"{stem}-{n + 1:05}-of-{len(groups):05}.safetensors" for n in range(len(groups))]
    names = names if len(groups) > 1 else [f"{stem}.safetensors"]
    total = 0
    for name, group in zip(names, groups, strict=True):
        tensors = {key: state[key] for key in group}
        tensors = change(tensors) if change else tensors
        tensors = {key: value.to(dtype or value.dtype).contiguous() for key, value in tensors.items()}
        total += sum(map(bytes_of, tensors.values()))
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(folder.stat().st_mode & 0o666)  # safetensors makes them for the owner alone
    if len(groups) > 1:
        where = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def bytes_of(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    """Bytes of a tensor as it is, or cast to `dtype`."""
    return tensor.numel() * (dtype.itemsize if dtype else tensor.element_size())


def _grouped(state: Mapping[str, Tensor], limit: int, dtype: torch.dtype | None) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for key, tensor in state.items():
        if groups[-1] and filled + bytes_of(tensor, dtype) > limit:
            groups.append([])
            filled = 0
        groups[-1].append(key)
        filled += bytes_of(tensor, dtype)
    return groups
