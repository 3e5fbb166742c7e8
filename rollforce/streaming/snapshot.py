"""Snapshot: a stream between two chunks, as one safetensors file (no pickle; versioned); and forks, copied on write."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from rollforce.checkpoints.outputs import replacing
from rollforce.config import build, to_dict
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError, SnapshotError, stand_in
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.video.values import check_file_name, check_path

VERSION = 5
T = TypeVar("T")


@dataclass(frozen=True)
class StreamIdentity:
    """The settings that a stream must meet again to continue to the same bytes. A field that is added later needs a
    default that means what was done before: then older snapshots go on."""

    stream: StreamSettings
    runtime: RuntimeOptions
    dtype: str
    threads: int

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Return the dotted names of the settings in which a saved identity differs. SnapshotError if it is none."""
        try:
            then = build(StreamIdentity, saved)
        except ConfigError as error:
            raise SnapshotError(f"The snapshot has settings that this rollforce does not know: {error}") from error
        return sorted(_differing(to_dict(self), to_dict(then)))


def _differing(one: Any, other: Any, path: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [name for key in one.keys() | other.keys()
                for name in _differing(one.get(key), other.get(key), f"{path}.{key}" if path else key)]  # fmt: skip
    return [] if one == other else [path]


@dataclass(frozen=True)
class Snapshot:
    """What was streamed, and where it stands. `model` is the fingerprint of the weights, `settings` the StreamIdentity
    as plain data, `size` (height, width) or None for the model's own, and `state` nested tensors and plain values."""

    model: str
    settings: dict[str, Any]
    prompt: str
    seed: int
    size: tuple[int, int] | None
    state: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all: tensors as safetensors, the rest as JSON in its header. ConfigError for
        a path that cannot be one, SnapshotError if it cannot be written."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        target = check_file_name(path, "snapshot", "stream.safetensors")
        if not target.parent.is_dir():
            raise ConfigError(f"the folder {target.parent} does not exist: mkdir -p {target.parent}")

        tensors: dict[str, Tensor] = {}
        header = {**vars(self), "version": VERSION, "state": _take_tensors(self.state, "", tensors)}
        try:
            with replacing(target) as file:
                save_file(tensors, file, metadata={"rollforce": json.dumps(header)})
        except (SafetensorError, OSError) as error:
            raise SnapshotError(f"{target} cannot be written ({error}): free space, or name another place.") from error

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Read a file written by `save`. SnapshotError if it is not one, or of a version that cannot be continued."""
        from safetensors import SafetensorError, safe_open

        path = check_path(path, "snapshot")
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get("rollforce")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            reason = stand_in(path) or f"{path} is not a snapshot: {error}. Name a file that one was saved to."
            raise SnapshotError(reason) from error
        if header is None:
            raise SnapshotError(f"{path} is a safetensors file, but not a snapshot of a stream.")
        data = _read_header(header, path)
        if data["version"] != VERSION:
            raise SnapshotError(f"{path} has snapshot version {data['version']}, which does not say its settings by "
                                f"name; this rollforce reads version {VERSION}. Continue it with the rollforce that "
                                "wrote it, or begin again.")  # fmt: skip
        size = None if data["size"] is None else tuple(data["size"])
        state = _put_tensors(data["state"], tensors)
        return cls(data["model"], data["settings"], data["prompt"], data["seed"], size, state)


def _read_header(header: str, path: Path) -> dict[str, Any]:
    """Return what a snapshot says beside its tensors. SnapshotError if anything is missing, or no JSON."""
    names = {"version", *(field.name for field in fields(Snapshot))}
    try:
        data = json.loads(header)
    except ValueError as error:
        raise SnapshotError(f"{path} is damaged ({error}): take another copy of it.") from error
    if not isinstance(data, dict) or (isinstance(data.get("version"), int) and data["version"] == VERSION
                                      and not names <= data.keys()):  # fmt: skip
        raise SnapshotError(f"{path} is damaged: its header lacks what a snapshot says. Take another copy of it.")
    return {"version": None, **data}


def _take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Copy nested dicts and lists with {"tensor": its path} for each tensor; the tensors go to `tensors`."""
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


def to_device(state: Any, device: torch.device) -> Any:
    """Copy nested state with its tensors to `device`: they may lie in a mapped file, which forks cannot share."""
    if isinstance(state, Tensor):
        return state.to(device, copy=True)
    if isinstance(state, dict):
        return {key: to_device(part, device) for key, part in state.items()}
    return [to_device(part, device) for part in state] if isinstance(state, list) else state


def fork(value: T) -> T:
    """Return the same again, free to go its own way. Tensors are shared until one of the two writes (torch's
    copy-on-write storage); lists, dicts and whatever has a `state_dict` (memory, regions, decoders) are made anew
    around them; modules and frozen settings belong to both."""
    mine: Any = value
    if isinstance(mine, nn.Module | nn.Parameter | nn.ParameterDict):
        return value
    if isinstance(mine, Tensor):
        return cast(T, _share(mine))
    if isinstance(mine, dict):
        return cast(T, {name: fork(part) for name, part in mine.items()})
    if isinstance(mine, list):
        return cast(T, [fork(part) for part in mine])
    if isinstance(mine, tuple) and not hasattr(mine, "_fields"):
        return cast(T, tuple(fork(part) for part in mine))
    if hasattr(mine, "state_dict"):
        twin = copy.copy(value)
        vars(twin).update(fork(vars(mine)))
        return twin
    return value


def _share(x: Tensor) -> Tensor:
    if x.device.type in ("cpu", "cuda"):
        with suppress(RuntimeError):  # memory that is not torch's own: of NumPy, of a mapped file
            return x._lazy_clone()
    return x.clone()
