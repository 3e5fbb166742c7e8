"""LoRA files: their names brought to ours, and their product baked into weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from rollforce.checkpoints.names import KINDS, translate
from rollforce.errors import CheckpointError

T = TypeVar("T")

_PART = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<side>A|B|down|up)(?:\.(?!weight$)\w+)?(?:\.weight)?|(?P<alpha>alpha|lora_alpha))"
)
_SIDES = {"A": "lora_A.weight", "down": "lora_A.weight", "B": "lora_B.weight", "up": "lora_B.weight"}
_KOHYA = "lora_unet_"


def is_lora(state: Mapping[str, object]) -> bool:
    """Whether any name is that of one side of a low-rank product."""
    return any(re.search(r"\.lora_(A|B|down|up)\b", name) for name in state)


def lora_to_ours(state: Mapping[str, T], name: str) -> dict[str, T]:
    """Rename to {module}.lora_A.weight, .lora_B.weight and perhaps .alpha, with our names of the modules. Understands
    peft's names (with or without an adapter's), diffusers' and kohya's, on original or our module names."""
    renamed: dict[str, T] = {}
    unknown: list[str] = []
    for key, value in state.items():
        if not (match := _PART.fullmatch(key)) or not (module := _module(match["module"])):
            unknown.append(key)
            continue
        short = f"{module}.{_SIDES.get(match['side'], 'alpha')}"
        if short in renamed:
            raise CheckpointError(f"{name} holds {short} twice: several adapters in one file. Save the one you want.")
        renamed[short] = value
    if unknown:
        raise CheckpointError(f"{name}: {len(unknown)} names are not those of a LoRA of a Wan transformer, e.g. "
                              f"{', '.join(unknown[:5])}.")  # fmt: skip
    return renamed


def with_alpha(lora: Mapping[str, Tensor], settings: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return `lora` with the alpha of its settings, as peft writes them, at every module that has none of its own.
    Raises CheckpointError for kinds of adapter whose product is not alpha / rank * B @ A."""
    for kind in ("use_rslora", "use_dora", "alpha_pattern"):
        if settings.get(kind):
            raise CheckpointError(f"{name}: {kind} is set; only plain LoRAs are read. Merge it where it was made.")
    alpha = settings.get("lora_alpha")
    own = {f"{module}.alpha": torch.tensor(float(alpha)) for module in targets_of(lora)} if alpha is not None else {}
    return {**own, **lora}


def adapter_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what diffusers writes into a LoRA file about it; {} if it is not there."""
    try:
        told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except json.JSONDecodeError:
        return {}
    return {key.rsplit(".", 1)[-1]: value for key, value in told.items()} if isinstance(told, dict) else {}


@dataclass(frozen=True)
class Branch:
    """One LoRA's part in one weight: down [rank, in], up [out, rank]; strength is alpha / rank."""

    down: Tensor
    up: Tensor
    strength: float


def branches_of(lora: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], alpha: float | None = None,
                name: str = "the LoRA") -> dict[str, Branch]:  # fmt: skip
    """Return a LoRA's part in each module it changes, checked against the shapes of their weights; all in our names.

    `alpha`: else each module's own, else its rank (LongLive: both 256). `name` is what errors call it.
    CheckpointError if it is of another model or lacks a side."""
    branches: dict[str, Branch] = {}
    for module in targets_of(lora):
        down, up = (lora.get(f"{module}.lora_{side}.weight") for side in "AB")
        if module not in shapes:
            raise CheckpointError(f"{name} changes {module}, which these weights lack: it is of another model.")
        if down is None or up is None:
            raise CheckpointError(f"{name} holds one side of {module} and not the other.")
        shape, own, rank = (up.shape[0], *down.shape[1:]), lora.get(f"{module}.alpha"), down.shape[0]
        if rank != up.shape[1] or shape != tuple(shapes[module]):
            raise CheckpointError(f"{module}: {name} is for a weight {list(shape)}, these weights have "
                                  f"{list(shapes[module])}.")  # fmt: skip
        strength = (alpha if alpha is not None else rank if own is None else float(own)) / rank
        branches[module] = Branch(down, up, strength)
    return branches


def merge_lora(state: Mapping[str, Tensor], lora: Mapping[str, Tensor],
               alpha: float | None = None) -> dict[str, Tensor]:  # fmt: skip
    """Return `state` with W + alpha / rank * B @ A for every module of `lora`; both in our names. Sums in float32.
    Tensors without a LoRA are those of `state`. For `alpha` and errors see `branches_of`."""
    merged = dict(state)
    shapes = {name.removesuffix(".weight"): tuple(weight.shape) for name, weight in state.items()}
    for module, branch in branches_of(lora, shapes, alpha).items():
        weight, change = state[f"{module}.weight"], branch.up.float().flatten(1) @ branch.down.float().flatten(1)
        merged[f"{module}.weight"] = (weight.float() + branch.strength * change.reshape(weight.shape)).to(weight.dtype)
    return merged


def targets_of(lora: Mapping[str, object]) -> list[str]:
    """Return the modules, in our names, that a LoRA changes."""
    return sorted({re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", name) for name in lora})


def _module(name: str) -> str | None:
    """Our name of a module, from its original name, ours, or kohya's with underscores for dots."""
    rows = [(source.removesuffix(".{w}"), ours.removesuffix(".{w}"))
            for source, ours in KINDS["transformer"].table if "{w}" in source]  # fmt: skip
    rows += [(ours, ours) for _, ours in rows]
    if name.startswith(_KOHYA):
        rows = [(source.replace(".", "_"), ours) for source, ours in rows]
    return translate(name.removeprefix(_KOHYA), tuple(rows))
