"""Folders of safetensors as diffusers and transformers lay them out: one file, or numbered ones with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollforce.checkpoints.lazy_tensor import read_out, storing_dtype
from rollforce.checkpoints.outputs import write_whole
from rollforce.errors import CheckpointError, stand_in

STEM = {"transformer": "diffusion_pytorch_model", "autoencoder": "diffusion_pytorch_model", "text": "model"}
LIMIT = 5_000_000_000  # bytes of one file
_NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.safetensors|\.bin|\.gguf)")
_INDEX = re.compile(r".+\.index(\.\w+)?\.json")

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file, memory-mapped. CheckpointError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise CheckpointError(stand_in(path) or f"{path.name} is damaged, not complete, or not safetensors: {error}. "
                              "Fetch it again.") from error  # fmt: skip
    except OSError as error:
        raise CheckpointError(stand_in(path) or f"{path} cannot be read: {error.strerror or error}.") from error


def metadata_of(path: Path) -> dict[str, str]:
    """Return the words that a file of safetensors carries beside its tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}



def check_shards(paths: list[Path]) -> None:
    """Raise CheckpointError if one of the files that belong together is missing."""
    if absent := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(f"{len(absent)} of {len(paths)} shards are missing in {paths[0].parent}: "
                              f"{', '.join(absent[:5])}. Download them again.")  # fmt: skip


def find_weights(folder: Path, stem: str) -> Path | None:
    """Return the file or index of a folder's weights as diffusers and transformers name them: {stem}.safetensors, whole
    or in shards, else its one variant, such as {stem}.fp16.safetensors, else the same as .bin; None if there are none.
    CheckpointError names several variants."""
    for ending, known in (("safetensors", (stem,)), ("bin", (stem, "pytorch_model"))):
        for each in dict.fromkeys(known):
            for path in (folder / f"{each}.{ending}.index.json", folder / f"{each}.{ending}"):
                if path.is_file():
                    return path
            if variants := _variants(folder, each, ending):
                return variants
    return None


def _variants(folder: Path, stem: str, ending: str) -> Path | None:
    found = {path.name.split(".")[-2]: path for path in sorted(folder.glob(f"{stem}.{ending}.index.*.json"))}
    for path in sorted(folder.glob(f"{stem}.*.{ending}")):
        if not _NUMBERED.fullmatch(path.name):
            found.setdefault(path.name.split(".")[-2], path)
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds its weights in the variants {', '.join(found)}, and none without a "
                              f"word in its name: leave one of them there, called {stem}.{ending}.")  # fmt: skip
    return next(iter(found.values()), None)


def shards_of(path: Path) -> list[Path]:
    """Return all files that belong with `path`: an index, one numbered shard, or a file of its own."""
    if _INDEX.fullmatch(path.name):
        where = read_json(path).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
            raise CheckpointError(f"{path} is not an index of safetensors: it has no weight_map.")
        return [path.parent / name for name in sorted(set(where.values()))]
    if match := _NUMBERED.fullmatch(path.name):
        return [path.parent / f"{match[1]}-{n + 1:05}-of-{match[2]}{match[3]}" for n in range(int(match[2]))] or [path]
    return [path]


def write_shards(state: Mapping[str, Tensor], folder: Path, stem: str, *, change: Change | None = None,
                 dtypes: Mapping[str, torch.dtype] | None = None, limit: int = LIMIT) -> None:  # fmt: skip
    """Write `state` as {stem}.safetensors, or as numbered files of at most `limit` bytes with an index.

    Only one file's tensors are in memory at a time, if `state` is memory-mapped or decoded when used; `change` is done
    to each file's, then they are cast to their `dtypes` (those not named keep their own)."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kinds = {key: storing_dtype(tensor, (dtypes or {}).get(key)) for key, tensor in state.items()}
    sizes = {key: tensor.to("meta", kinds[key]) for key, tensor in state.items()}
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=f"{stem}{{suffix}}.safetensors",
                                               max_shard_size=limit)  # fmt: skip
    for name, keys in split.filename_to_tensors.items():
        tensors = {key: state[key] for key in keys}
        tensors = change(tensors) if change else tensors
        tensors = {key: read_out(value).to(kinds[key]).contiguous() for key, value in tensors.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(folder.stat().st_mode & 0o666)  # safetensors makes them for the owner alone
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        write_json(index, folder / f"{stem}.safetensors.index.json")


def bytes_of(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a tensor as it is, or cast to `dtype`."""
    return tensor.numel() * storing_dtype(tensor, dtype).itemsize


def read_json(path: Path, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the object in a JSON file, or `default` where there is no such file. CheckpointError if the file is
    missing and there is no default, or if it holds no JSON object."""
    if default is not None and not path.is_file():
        return dict(default)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(stand_in(path) or f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; an object was expected.")
    return content


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write an object to a JSON file, whose folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2) + "\n")
