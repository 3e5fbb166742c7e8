"""Snapshot: a stream between two chunks, as one safetensors file. No pickle; versioned."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from rollforce.errors import SnapshotError

VERSION = 4


@dataclass(frozen=True)
class Snapshot:
    """What was streamed (`model` fingerprint, `settings`, `prompt`, `seed`, `size`) and where it stands (`state`)."""

    model: str
    settings: str
    prompt: str
    seed: int
    size: tuple[int, int] | None
    state: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write one file: tensors as safetensors, the rest as JSON in its header."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        plain = _take_tensors(self.state, "", tensors)
        header = {
            "model": self.model,
            "settings": self.settings,
            "prompt": self.prompt,
            "seed": self.seed,
            "size": self.size,
        }
        save_file(tensors, path, metadata={"rollforce": json.dumps({"version": VERSION, **header, "state": plain})})

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Read a file written by `save`. SnapshotError if it is not one."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get("rollforce")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise SnapshotError(f"{path} is not a snapshot: {error}") from error
        if header is None:
            raise SnapshotError(f"{path} is a safetensors file, but not a snapshot of a stream.")
        data = json.loads(header)
        if data["version"] != VERSION:
            raise SnapshotError(
                f"{path} has snapshot version {data['version']}; this rollforce reads version {VERSION}."
            )
        size = None if data["size"] is None else tuple(data["size"])
        state = _put_tensors(data["state"], tensors)
        return cls(data["model"], data["settings"], data["prompt"], data["seed"], size, state)


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A copy of nested dicts and lists with {"tensor": its path} for each tensor; the tensors go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous().cpu()
        return {"tensor": path}
    if isinstance(value, dict):
        return {key: _take_tensors(part, f"{path}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(part, f"{path}/{i}", tensors) for i, part in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"} and value["tensor"] in tensors:
            return tensors[value["tensor"]]
        return {key: _put_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_put_tensors(part, tensors) for part in value]
    return value


def on_device(state: Any, device: torch.device) -> Any:
    """Nested state with its tensors on `device`, copied: they may lie in a mapped file, which forks cannot share."""
    if isinstance(state, Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: on_device(part, device) for key, part in state.items()}
    return [on_device(part, device) for part in state] if isinstance(state, list) else state


T = TypeVar("T")


def fork(value: T) -> T:
    """The same again, free to go its own way.

    Tensors are shared until one of the two writes (torch's copy-on-write storage); lists, dicts and whatever has a
    `state_dict` (memory, regions, decoders) are made anew around them; modules and frozen settings belong to both."""
    return cast(T, _forked(value))


def _forked(value: object) -> object:
    if isinstance(value, nn.Module | nn.Parameter | nn.ParameterDict):
        return value
    if isinstance(value, Tensor):
        return _twin(value)
    if isinstance(value, dict):
        return {name: _forked(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_forked(part) for part in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_forked(part) for part in value)
    if hasattr(value, "state_dict"):
        twin = copy.copy(value)
        twin.__dict__.update({name: _forked(part) for name, part in vars(value).items()})
        return twin
    return value


def _twin(x: Tensor) -> Tensor:
    if x.device.type not in ("cpu", "cuda"):
        return x.clone()
    try:
        return x._lazy_clone()
    except RuntimeError:  # memory that is not torch's own: of NumPy, of a mapped file
        return x.clone()
