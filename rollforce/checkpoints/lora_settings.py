"""What is said about a LoRA beside its tensors: its alpha, in the file's own words or in an adapter_config.json.

A module's own alpha tensor comes first, then the file's metadata (`lora_adapter_metadata` of peft and diffusers,
`ss_network_alpha` of kohya), then adapter_config.json. What is said must be of this very adapter: its kind, its ranks
and its modules are compared with the tensors."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollforce.checkpoints.lora_changes import check_tensors
from rollforce.checkpoints.lora_kinds import REMEDY, refuse_settings
from rollforce.checkpoints.names import KINDS, translate
from rollforce.checkpoints.safetensors_folder import read_json
from rollforce.errors import CheckpointError

log = logging.getLogger(__name__)
LARGE = 1e9  # no alpha is
METADATA, BESIDE, KOHYA = "lora_adapter_metadata", "adapter_config.json", "ss_network_alpha"
_SAVED = re.compile(r"adapter_model(-\d+-of-\d+)?\.(safetensors|bin)")  # what peft calls the weights of BESIDE
_INVERSE = tuple((ours, source) for source, ours in KINDS["transformer"].table)


def read_settings(source: Path, metadata: Mapping[str, str],
                  lora: Mapping[str, Tensor]) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Return what is said about a LoRA (its tensors in our names) in the metadata of its file `source` or beside it, in
    peft's words, and where; ({}, "") if nowhere.

    Raises CheckpointError if what its own file says is of another adapter. An adapter_config.json of another adapter
    is left alone, with a warning."""
    for place, settings in ((METADATA, _own(metadata, source.name)), (KOHYA, _kohya(metadata, source.name))):
        if settings:
            if why := _difference(settings, lora):
                raise CheckpointError(f"{source.name}: its own metadata ({place}) is of another adapter: {why}. Its "
                                      "alpha cannot be told. Save the LoRA anew where it was made.")  # fmt: skip
            return settings, place
    return _beside(source, lora)


def with_alpha(lora: Mapping[str, Tensor], settings: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return `lora` with the alpha of its settings at every module with a pair that has none of its own.

    Raises CheckpointError if the settings say that its change is another than alpha / rank * B @ A."""
    refuse_settings(settings, name)
    check_tensors(lora, name)
    if settings.get("use_dora") and not any(key.endswith(".dora_scale") for key in lora):
        raise CheckpointError(f"{name} is a DoRA (use_dora is set) without its magnitudes (lora_magnitude_vector): it "
                              f"is not complete. {REMEDY}.")  # fmt: skip
    told: dict[str, Tensor] = {}
    for module, rank in ranks_of(lora).items():
        alpha = _value(settings, "alpha_pattern", "lora_alpha", module, name)
        if alpha is not None:
            root = math.sqrt(rank) if settings.get("use_rslora") else 1.0  # rank-stabilised: alpha / sqrt(rank)
            told[f"{module}.alpha"] = torch.tensor(alpha * root, dtype=torch.float64)
    return {**told, **lora}


def describe_lora(raw: Mapping[str, Tensor], lora: Mapping[str, Tensor], place: str) -> str:
    """Say what a LoRA is, from its tensors before and after `with_alpha` and where its settings were read, in a line:
    "LoRA on 20 modules, rank 4, alpha / rank 2 (lora_adapter_metadata)"."""
    ranks = ranks_of(lora)
    counts = {word: sum(key.endswith(part) for key in lora) for part, word in _EXTRAS.items()}
    said = [f"{count} {word}" for word, count in counts.items() if count]
    if ranks:
        strengths = [float(lora.get(f"{module}.alpha", rank)) / rank for module, rank in ranks.items()]
        own = all(f"{module}.alpha" in raw for module in ranks)
        told = "in its tensors" if own else place or "alpha not given: taken as the rank"
        said.insert(0, f"LoRA on {len(ranks)} modules, rank {_range(ranks.values())}, alpha / rank "
                       f"{_range(strengths)} ({told})")  # fmt: skip
    return ", ".join(said)


def ranks_of(lora: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of every module that has a pair."""
    side = ".lora_A.weight"
    return {key.removesuffix(side): len(tensor) for key, tensor in lora.items() if key.endswith(side) and tensor.dim()}


_EXTRAS = {".dora_scale": "magnitudes (DoRA)", ".lora_B.bias": "biases", ".diff": "whole differences"}


def _range(numbers: Iterable[float]) -> str:
    found = sorted({f"{number:g}": number for number in numbers}.values())
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def _own(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """What diffusers and peft write into a LoRA's file about its transformer."""
    if METADATA not in metadata:
        return {}
    try:
        told = json.loads(metadata[METADATA])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{name}: its {METADATA} is damaged ({error}): its alpha cannot be told. Save it anew "
                              "where it was made.") from error  # fmt: skip
    if not isinstance(told, dict):
        raise CheckpointError(f"{name}: its {METADATA} holds a {type(told).__name__}, not an object.")
    own = {key.removeprefix("transformer."): value for key, value in told.items() if key.startswith("transformer.")}
    return own or {key: value for key, value in told.items() if "." not in key}


def _kohya(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """kohya's words as peft's; an alpha of 0 or None is the rank, as there."""
    told = metadata.get(KOHYA, "None")
    try:
        alpha = float(told) if told not in ("None", "Dynamic", "") else 0.0
    except ValueError as error:
        raise CheckpointError(f"{name}: its {KOHYA} is {told!r}, not a number.") from error
    return {"lora_alpha": alpha} if alpha else {}


def _beside(source: Path, lora: Mapping[str, Tensor]) -> tuple[dict[str, Any], str]:
    """adapter_config.json, if it is of this file: of adapter_model.* or, if there is none, of what it fits in all."""
    path = source.parent / BESIDE
    settings, saved = read_json(path, {}), bool(_SAVED.fullmatch(source.name))
    if not settings or (not saved and any(_SAVED.fullmatch(other.name) for other in source.parent.iterdir())):
        return {}, ""
    why = _difference(settings, lora)
    if saved and why:
        raise CheckpointError(f"{path} is of another adapter than {source.name}: {why}. Put the right one there; or "
                              "remove it, and alpha is the rank.")  # fmt: skip
    if not why and (saved or {"r", "target_modules"} <= settings.keys()):
        return settings, BESIDE
    log.warning("%s beside %s is of another adapter (%s): it is not used, and alpha is each module's own or its rank",
                BESIDE, source.name, why or "it does not say r and target_modules")  # fmt: skip
    return {}, ""


def _difference(settings: Mapping[str, Any], lora: Mapping[str, Tensor]) -> str | None:
    """Why settings are not those of a LoRA; None if they may be."""
    if (kind := settings.get("peft_type", "LORA")) != "LORA" and ranks_of(lora):
        return f"its peft_type is {kind}, these are pairs of a LoRA"
    targets = settings.get("target_modules")
    for module, rank in ranks_of(lora).items():
        said = _value(settings, "rank_pattern", "r", module, BESIDE)
        if said is not None and said != rank:
            return f"it says rank {said:g} of {module}, whose pair has {rank}"
        if not _is_target(module, targets):
            return f"{module} is none of its target_modules ({_first(targets)})"
    return None


def _value(settings: Mapping[str, Any], pattern: str, plain: str, module: str, name: str) -> float | None:
    """The number for a module, from patterns of names or for all; None if it is not said."""
    values = settings.get(pattern) or {}
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{name}: its {pattern} is {values!r}; an object of names and numbers was expected.")
    fits = (value for key, value in values.items() for each in _spellings(module)
            if _matches(rf"(.*\.)?({key})", each) or key.endswith(f".{each}"))  # fmt: skip
    value = next(fits, settings.get(plain))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGE:
        raise CheckpointError(f"{name}: {plain} of {module} is {value!r:.40}; a number below {LARGE:g} was expected.")
    return float(value)


def _is_target(module: str, targets: Any) -> bool:
    if targets is None or targets == "all-linear":
        return True
    if not isinstance(targets, str | list):
        raise CheckpointError(f"target_modules of a LoRA are {targets!r}; a list of names or a pattern was expected.")
    if isinstance(targets, str):
        return any(_matches(rf"(.*\.)?({targets})", each) for each in _spellings(module))
    return any(f".{each}".endswith(f".{target}") or f"{target}".endswith(f".{each}")
               for each in _spellings(module) for target in targets)  # fmt: skip


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise CheckpointError(f"{pattern!r}, of a LoRA's settings, is not a pattern of names: {error}.") from error


def _spellings(module: str) -> tuple[str, ...]:
    """The name of a module in ours and in the original words."""
    original = translate(f"{module}.weight", _INVERSE)
    return (module, original.removesuffix(".weight")) if original else (module,)


def _first(targets: Any) -> str:
    return targets if isinstance(targets, str) else ", ".join(map(str, list(targets)[:5]))
