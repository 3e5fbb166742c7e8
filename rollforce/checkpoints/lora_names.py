"""LoRA files: their names brought to ours, and what they change baked into weights.

In our form a LoRA is a state dict of, for each module (Linear or patch embedding) or parameter that it changes,

    {module}.lora_A.weight [rank, in]    {module}.lora_B.weight [out, rank]    {module}.lora_B.bias [out]
    {module}.alpha                       {module}.dora_scale (DoRA's magnitudes)
    {parameter}.diff                     a difference of a whole weight, bias or modulation
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from rollforce.checkpoints.lora_changes import add_up, changes_of
from rollforce.checkpoints.lora_kinds import is_adapter, refuse_others
from rollforce.checkpoints.names import KINDS, Table, translate
from rollforce.errors import CheckpointError

T = TypeVar("T")

_PAIR = re.compile(r"(?P<module>.+?)\.lora[._](?P<side>A|B|down|up)(?:\.(?P<adapter>(?!(?:weight|bias)$)\w+))?"
                   r"(?:\.(?P<what>weight|bias))?")  # fmt: skip
_MAGNITUDE = re.compile(r"(?P<module>.+?)\.(?:dora_scale|lora_magnitude_vector(?:\.(?!weight$)\w+)?(?:\.weight)?)")
_ALPHA = re.compile(r"(?P<module>.+?)\.(?:lora_)?alpha")
_DIFFERENCE = re.compile(r"(?P<module>.+)\.(?P<what>diff|diff_b|diff_m|w_norm|b_norm)")
_SIDES = {"A": "lora_A", "down": "lora_A", "B": "lora_B", "up": "lora_B"}
_LEAVES = {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias", "diff_m": "modulation"}
_FLAT = ("lora_unet_", "lycoris_", "lora_transformer_")  # of tools that write underscores for dots
_TEXT = re.compile(r"lora_te\d?_|text_encoder")


def is_lora(state: Mapping[str, object]) -> bool:
    """Whether any name is that of a LoRA's tensor, or of another kind of adapter's, which `lora_to_ours` refuses."""
    return is_adapter(state)


def lora_to_ours(state: Mapping[str, T], name: str) -> dict[str, T]:
    """Return a LoRA's tensors under our names. Understands peft's (with or without an adapter's), diffusers', kohya's
    and LyCORIS' names, ComfyUI's and LightX2V's differences, on original or our module names.

    Raises CheckpointError for other kinds of adapters and for names that it does not know: nothing is left out."""
    refuse_others(state, name)
    renamed: dict[str, T] = {}
    came: dict[str, str] = {}
    unknown = []
    for key, value in state.items():
        if (short := _ours(key)) is None:
            unknown.append(key)
            continue
        if short in renamed:
            raise CheckpointError(_twice(name, short, came[short], key))
        renamed[short], came[short] = value, key
    if unknown:
        raise CheckpointError(_unknown(name, unknown))
    return renamed


def merge_lora(state: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float | None = None,
               scale: float = 1.0, dtype: torch.dtype | None = None) -> dict[str, Tensor]:  # fmt: skip
    """Return `state` with what `lora` changes added `scale` times; both in our names. Sums in float32.

    `dtype`: of what is changed; else as it was, and bfloat16 where that was eight bits. Other tensors are those of
    `state`. For `alpha` and errors see `changes_of`."""
    changes = changes_of(lora, {key: tuple(tensor.shape) for key, tensor in state.items()}, alpha)
    return {key: add_up(tensor, [(scale, change) for change in changes[key]], dtype) if key in changes else tensor
            for key, tensor in state.items()}  # fmt: skip


def targets_of(lora: Mapping[str, object]) -> list[str]:
    """Return the modules with pairs, and the parameters with differences, that a LoRA changes, in our names."""
    return sorted({re.sub(r"\.(lora_[AB]\.(weight|bias)|alpha|dora_scale|diff)$", "", name) for name in lora})


def _ours(key: str) -> str | None:
    """Our name of one tensor of a LoRA; None if it is none's."""
    if match := _PAIR.fullmatch(key):
        part = f"{_SIDES[match['side']]}.{match['what'] or 'weight'}"
        return None if part == "lora_A.bias" else _of_module(match["module"], part)
    if match := _MAGNITUDE.fullmatch(key):
        return _of_module(match["module"], "dora_scale")
    if match := _ALPHA.fullmatch(key):
        return _of_module(match["module"], "alpha")
    if match := _DIFFERENCE.fullmatch(key):
        module = match["module"]
        found = _parameter(f"{module}.{_LEAVES[match['what']]}") or _parameter(module)
        return f"{found}.diff" if found else None
    return None


def _of_module(module: str, part: str) -> str | None:
    weight = _parameter(f"{module}.weight")
    return f"{weight.removesuffix('.weight')}.{part}" if weight else None


def _parameter(name: str) -> str | None:
    """Our name of a parameter, from its original name, ours, or either with underscores for dots in its module's."""
    prefix = next((each for each in _FLAT if name.startswith(each)), "")
    return translate(name.removeprefix(prefix), _rows(bool(prefix)))


@cache
def _rows(flat: bool) -> Table:
    table = KINDS["transformer"].table
    rows = [*table, *((ours, ours) for _, ours in table)]
    return tuple((_flat(source) if flat else source, ours) for source, ours in rows)


def _flat(source: str) -> str:
    module, dot, leaf = source.rpartition(".")
    return f"{module.replace('.', '_')}{dot}{leaf}"


def _twice(name: str, short: str, first: str, second: str) -> str:
    adapters = [match["adapter"] for match in map(_PAIR.fullmatch, (first, second)) if match and match["adapter"]]
    if len(set(adapters)) == 2:
        return f"{name} holds several adapters ({', '.join(adapters)}, ...). Save the one you want."
    return f"{name} holds {short} twice, as {first} and as {second}: several LoRAs in one file. Save the one you want."


def _unknown(name: str, names: list[str]) -> str:
    first = ", ".join(names[:5])
    if text := [each for each in names if _TEXT.match(each)]:
        return (f"{name} also changes the text encoder ({len(text)} names, e.g. {text[0]}), which no LoRA can here. "
                "Take one of the transformer alone, or save it without these names.")  # fmt: skip
    if any(each.startswith("transformer_2.") for each in names):
        return (f"{name} also changes the second expert of Wan 2.2 A14B ({first}); a stream has one. Save the part of "
                "yours alone, without the prefix transformer_2.")  # fmt: skip
    if all(_parameter(each.replace(".base_layer.", ".")) for each in names):
        return (f"{name} holds {len(names)} whole weights beside what it changes, e.g. {first} (peft's modules_to_save "
                "or bias, or a whole model that was saved with its LoRA), which have no scale. Merge it where it was "
                "trained (peft: merge_and_unload), and convert the result.")  # fmt: skip
    return (f"{name}: {len(names)} names are not those of a LoRA of a Wan transformer, e.g. {first}. It is of another "
            "model, or made by a tool whose names are not known here; nothing is left out.")  # fmt: skip
