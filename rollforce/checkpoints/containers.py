"""State dicts inside what trainers save: which there are, which to take, and what to strip of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from rollforce.checkpoints.names import first_of
from rollforce.errors import CheckpointError

T = TypeVar("T")

# Words of containers; of several, the first: an average over training is the better model.
AVERAGES = ("generator_ema", "student_ema", "model_ema", "ema_model", "ema_state_dict", "ema")
CONTAINERS = (*AVERAGES, "generator", "student", "net", "model", "module", "model_state_dict", "generator_lora", "lora",
              "state_dict", "app", "shadow")  # fmt: skip
BESIDE = {"critic", "fake_score", "real_score", "discriminator", "optimizer", "optimizers", "optim", "lr_scheduler",
          "scheduler", "teacher"}  # fmt: skip
"""What stands beside the weights of a generator in one flat state dict, and is none."""
WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}  # segments anywhere in a name
PREFIXES = {"model", "module", "base_model", "diffusion_model", "generator", "transformer", "net", "student"}
DEPTH = 3  # containers inside containers


def unpack(content: Any, name: str, container: str | None = None) -> tuple[str, dict[str, T]]:
    """Return the state dict inside what a file held, and the words of its container ("" if in none).

    `container`: the one to take, such as "generator" or "generator_ema.shadow"; else an average over training, then
    the others in the order of CONTAINERS. CheckpointError lists what is held."""
    held = state_dicts(content, name, container)
    if container is not None and container not in held:
        raise CheckpointError(f"{name} holds no state dict {container!r}, but "
                              f"{', '.join(filter(None, held)) or 'one'}.")  # fmt: skip
    if held:
        where = container if container is not None else next(iter(held))
        return where, held[where]
    words = first_of(map(str, content)) or "nothing"
    raise CheckpointError(f"{name} holds {words}: none of {', '.join(CONTAINERS)}, and no tensors of its own. Name the "
                          "state dict to take: --container NAME.")  # fmt: skip


def state_dicts(content: Any, name: str, also: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the state dicts in a container by their place, such as "generator_ema.shadow", the one to take first.
    `also`: one more place to look at. CheckpointError if the content is no container."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a state dict.")
    words = {*CONTAINERS, *(also or "").split(".")}
    found = dict(_walk(content, "", words))
    return dict(sorted(found.items(), key=lambda item: _rank(item[0])))


def _walk(content: Mapping[Any, Any], where: str, words: set[str], depth: int = 0) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for head, group in grouped(tensors_of(content), words).items():
        found += _walk(group, f"{where}.{head}".strip("."), words, depth + 1) if head else [(where, group)]
    for key, value in content.items():
        if isinstance(value, Mapping) and key in words and depth < DEPTH:
            found += _walk(value, f"{where}.{key}".strip("."), words, depth + 1)
    return found


def _rank(where: str) -> tuple[int, int]:
    """Averages first, then by the word of the outer container; what is in none, last."""
    parts = where.split(".")
    average = any(part in (*AVERAGES, "shadow") for part in parts)
    return (not average, CONTAINERS.index(parts[0]) if parts[0] in CONTAINERS else len(CONTAINERS))


def grouped(state: Mapping[str, T], words: set[str]) -> dict[str, dict[str, T]]:
    """Return the state dicts in a flat one whose names begin with containers' words ("generator_ema.blocks.0..."),
    without what a training run keeps beside them; {"": state} where no name begins so, {} for an empty one."""
    heads = {key.partition(".")[0] for key in state if "." in key}
    if not heads & (BESIDE | words - PREFIXES - {"model"}) or not heads <= words | BESIDE | {"step"}:
        return {"": dict(state)} if state else {}
    groups: dict[str, dict[str, T]] = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head in words:
            groups.setdefault(head, {})[rest] = value
    return groups


def tensors_of(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict; and a LoRA's alphas, which may be plain numbers in it."""
    own = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    numbers = {str(key): value for key, value in content.items() if type(value) in (int, float)}
    alphas = {key: torch.tensor(float(value) if abs(value) < 1e38 else torch.inf) for key, value in numbers.items()
              if key.endswith(".alpha")}  # fmt: skip
    return {**own, **alphas} if own else own


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
    wrapped = any(not WRAPPERS.isdisjoint(key.split(".")) for key in inner)
    return f"{name} holds {held}{' (FSDP prefixes)' if wrapped else ''}"
