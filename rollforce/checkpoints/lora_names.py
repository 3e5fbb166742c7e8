"""LoRA files: their names brought to ours, and their product baked into weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from rollforce.checkpoints.names import KINDS, Table, translate
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
    """Rename to {module}.lora_A.weight, .lora_B.weight and perhaps .alpha, with our names of the modules.

    Understands peft's names (with or without an adapter's), diffusers' and kohya's, on original or our module names.
    """
    renamed: dict[str, T] = {}
    unknown: list[str] = []
    for key, value in state.items():
        match = _PART.fullmatch(key)
        module = _module(match["module"]) if match else None
        if match is None or module is None:
            unknown.append(key)
            continue
        short = f"{module}.{_SIDES.get(match['side'], 'alpha')}"
        if short in renamed:
            raise CheckpointError(f"{name} holds {short} twice: several adapters in one file. Save the one you want.")
        renamed[short] = value
    if unknown:
        raise CheckpointError(
            f"{name}: {len(unknown)} names are not those of a LoRA of a Wan transformer, e.g. {', '.join(unknown[:5])}."
        )
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


def merge_lora(
    state: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float | None = None
) -> dict[str, Tensor]:
    """Return `state` with W + alpha / rank * B @ A for every module of `lora`; both in our names. Sums in float32.

    `alpha`: else each module's own, else its rank (LongLive: both 256). Tensors without a LoRA are those of `state`.
    Raises CheckpointError if `lora` is of another model or lacks a side.
    """
    merged = dict(state)
    for module in targets_of(lora):
        weight = state.get(f"{module}.weight")
        down, up = (lora.get(f"{module}.lora_{side}.weight") for side in "AB")
        if weight is None:
            raise CheckpointError(f"the LoRA changes {module}, which these weights lack: it is of another model.")
        if down is None or up is None:
            raise CheckpointError(f"the LoRA holds one side of {module} and not the other.")
        shape = (up.shape[0], *down.shape[1:])
        if down.shape[0] != up.shape[1] or shape != tuple(weight.shape):
            raise CheckpointError(
                f"{module}: the LoRA is for a weight {list(shape)}, these weights have {list(weight.shape)}."
            )
        own = lora.get(f"{module}.alpha")
        rank = down.shape[0]
        scale = (alpha if alpha is not None else float(own) if own is not None else rank) / rank
        change = up.float().flatten(1) @ down.float().flatten(1)
        merged[f"{module}.weight"] = (weight.float() + scale * change.reshape(weight.shape)).to(weight.dtype)
    return merged


def targets_of(lora: Mapping[str, object]) -> list[str]:
    """Return the modules, in our names, that a LoRA changes."""
    return sorted({re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", name) for name in lora})


def _module(name: str) -> str | None:
    """Our name of a module, from its original name, ours, or kohya's with underscores for dots."""
    table = _modules(KINDS["transformer"].table)
    if name.startswith(_KOHYA):
        flat = tuple((source.replace(".", "_"), ours) for source, ours in (*table, *_same(table)))
        return translate(name.removeprefix(_KOHYA), flat)
    return translate(name, table) or translate(name, _same(table))


def _modules(table: Table) -> Table:
    return tuple((source.removesuffix(".{w}"), ours.removesuffix(".{w}")) for source, ours in table if "{w}" in source)


def _same(table: Table) -> Table:
    return tuple((ours, ours) for _, ours in table)
