"""What a file of weights holds, before any name is translated: which part of it to take, and what to strip of names."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from rollforce.errors import CheckpointError

T = TypeVar("T")

GENERATORS = ("generator_ema", "generator", "model")  # of students' training code; the average is the better model
CONTAINERS = (*GENERATORS, "generator_lora", "lora", "state_dict")
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}  # segments anywhere in a name
PREFIXES = {"model", "module", "base_model", "diffusion_model", "generator", "transformer"}  # only in front


def read_pickle(path: Path) -> Any:
    """Read a .pt or .pth as plain containers of tensors, memory-mapped where its format allows. No code of it is
    run."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError) as error:
        found = re.search(r"GLOBAL ([\w.]+)|(?:class|global|call to) ([\w.]+\.[\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"{path.name} is damaged, or is not a file that torch.save wrote.") from error
        raise CheckpointError(
            f"{path.name} is a pickle; loading with weights_only=True failed (object {found[1] or found[2]}). "
            "Refusing: it could run code. Ask for a safetensors file, or save its tensors alone with torch.save."
        ) from error
    except RuntimeError as error:  # torch's word for a cut-off zip
        if "PytorchStreamReader" not in str(error) and "archive" not in str(error):
            raise
        raise CheckpointError(f"{path.name} is damaged or not complete: {str(error).splitlines()[0]}") from error


def unpack(content: Any, name: str) -> tuple[str, dict[str, Tensor]]:
    """Return the state dict inside what a pickle held, and the word of the container it was in ("" if in none)."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a state dict.")
    for word in CONTAINERS:
        inside = content.get(word)
        if isinstance(inside, Mapping) and (tensors := tensors_of(inside)):
            return word, tensors
    if bare := tensors_of(content):
        return "", bare
    words = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
    raise CheckpointError(f"{name} holds {words}: none of {', '.join(CONTAINERS)}, and no tensors of its own.")


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def stripped(state: Mapping[str, T], name: str) -> dict[str, T]:
    """Return a state dict under names without what FSDP, DDP, torch.compile, peft and outer modules put around them."""
    clean: dict[str, T] = {}
    for key, value in state.items():
        short = strip(key)
        if short in clean:
            raise CheckpointError(f"{name} holds {short} twice, once as {key}: two models in one state dict.")
        clean[short] = value
    return clean


def strip(key: str) -> str:
    segments = [segment for segment in key.split(".") if segment not in WRAPPERS]
    while len(segments) > 1 and segments[0] in PREFIXES:
        segments = segments[1:]
    return ".".join(segments)


def describe(content: Any, name: str) -> str:
    """Say what a pickle holds, in a few words: "sf.pt holds generator, critic (FSDP prefixes)"."""
    if not isinstance(content, Mapping):
        return f"{name} holds a {type(content).__name__}"
    words = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    held = ", ".join(words[:8]) if words else f"{len(tensors_of(content))} bare tensors"
    inner = (str(key) for value in content.values() if isinstance(value, Mapping) for key in value)
    return f"{name} holds {held}{' (FSDP prefixes)' if _wrapped(inner) else ''}"


def _wrapped(keys: Iterable[str]) -> bool:
    return any(not WRAPPERS.isdisjoint(key.split(".")) for key in keys)
