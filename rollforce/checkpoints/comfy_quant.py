"""ComfyUI's quantised weights, decoded as they are used: fp8_scaled (old), comfy_quant (float8, int8, int8_convrot).

Old: `scaled_fp8` marks the file, X.scale_weight is a scale of X.weight. New: X.weight_scale, with X.comfy_quant (JSON
as bytes) or the file's `_quantization_metadata`; LightX2V writes X.weight_scale alone. A value is its code times the
scale, a scalar or one for each row [out, 1]. Source: Comfy-Org/ComfyUI QUANTIZATION.md; comfy-kitchen for the rotation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from rollforce.checkpoints.lazy_tensor import LazyTensor
from rollforce.errors import CheckpointError

MARK = "scaled_fp8"
SCALES = ("scale_weight", "weight_scale")
BESIDE = ("scale_input", "input_scale", "comfy_quant", *SCALES)  # what may stand beside a quantised weight
METADATA = "_quantization_metadata"
CODES = {torch.float8_e4m3fn: "float8", torch.float8_e5m2: "float8", torch.int8: "int8"}
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
GROUP = 256  # of a rotation whose size is not said


def is_scaled(state: Mapping[str, Tensor]) -> bool:
    """Whether any name is one that ComfyUI's quantised files have and no plain one has."""
    return any(key.rpartition(".")[2] in (MARK, *BESIDE) for key in state)


def dequantise(state: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> tuple[dict[str, Tensor], str]:
    """Return the state dict with float32 weights that are decoded when used, and the format in words.

    CheckpointError, which names the format, for one that is not read here, and for scales that fit no weight."""
    told = _described(state, metadata, name)
    plain = {key: value for key, value in state.items() if key.rpartition(".")[2] not in (MARK, *BESIDE)}
    scales = {key.rpartition(".")[0]: value for key, value in state.items() if key.rpartition(".")[2] in SCALES}
    if lost := [module for module in {**scales, **told} if f"{module}.weight" not in plain]:
        raise CheckpointError(f"{name} holds a scale of {lost[0]} and no {lost[0]}.weight: it is not whole.")
    for module, scale in scales.items():
        weight, settings = plain[f"{module}.weight"], told.get(module, {})
        plain[f"{module}.weight"] = _lazy(weight, scale, _group(settings, weight, module, name), f"{name}: {module}")
    return plain, _words(state, plain, told, scales)


def _words(state: Mapping[str, Tensor], plain: Mapping[str, Tensor], told: Mapping[str, Any],
           scales: Mapping[str, Tensor]) -> str:  # fmt: skip
    if any(key.endswith(MARK) or key.endswith("scale_weight") for key in state):
        return "ComfyUI fp8_scaled" if scales else "ComfyUI float8 (marked scaled_fp8, without scales)"
    kinds = {CODES.get(state[f"{module}.weight"].dtype, "") for module in scales}
    kinds |= {"int8_convrot" for settings in told.values() if _flag(settings, "convrot")}
    return f"{'ComfyUI comfy_quant' if told else 'scaled weights'} ({', '.join(sorted(kinds))})"


def _described(state: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> dict[str, dict[str, Any]]:
    """What the file says of each quantised layer."""
    try:
        told = dict(json.loads(metadata.get(METADATA, "{}")).get("layers", {}))
        told |= {key.rpartition(".")[0]: json.loads(bytes(value.tolist()))
                 for key, value in state.items() if key.endswith(".comfy_quant")}  # fmt: skip
        kinds = {str(settings.get("format")) for settings in told.values()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name}: what it says of its quantisation is damaged: {error}.") from error
    if unknown := sorted(kinds - set(FORMATS)):
        raise CheckpointError(f"{name} is a ComfyUI comfy_quant file of the format {', '.join(unknown)}, which is not "
                              f"read here. Take a file in {', '.join(FORMATS)}, bfloat16, float16, or GGUF.")
    return told


def _flag(settings: Mapping[str, Any], word: str, default: Any = None) -> Any:
    """A setting of a layer, which may stand under "params"."""
    inner = settings.get("params")
    return settings.get(word, inner.get(word, default) if isinstance(inner, dict) else default)


def _group(settings: Mapping[str, Any], weight: Tensor, module: str, name: str) -> int:
    """The size of the groups that a rotation turned, 0 without one."""
    if not _flag(settings, "convrot"):
        return 0
    group = _flag(settings, "convrot_groupsize", GROUP)
    whole = isinstance(group, int) and group >= 4 and group.bit_count() == 1 and group.bit_length() % 2
    if not whole or weight.dim() != 2 or weight.shape[1] % group:
        raise CheckpointError(f"{name}: {module} {list(weight.shape)} is rotated in groups of {group!r}; a power of 4 "
                              "that divides its width is needed.")  # fmt: skip
    return int(group)


def _lazy(weight: Tensor, scale: Tensor, group: int, what: str) -> Tensor:
    if weight.dtype not in CODES and not weight.is_floating_point():
        raise CheckpointError(f"{what} holds codes in {weight.dtype}, with a scale: not a format that is read here. "
                              "Take a file in float8, int8, bfloat16 or GGUF.")  # fmt: skip
    rows = weight.shape[0] if weight.dim() else 1
    if tuple(scale.shape) not in {(), (1,), (1, 1), (rows,), (rows, 1)} or not scale.is_floating_point():
        raise CheckpointError(f"{what}: a scale {list(scale.shape)} of {scale.dtype} does not fit a weight "
                              f"{list(weight.shape)}: one number, or one for each row, is read here.")  # fmt: skip
    return LazyTensor(tuple(weight.shape), torch.float32, partial(decode, weight, scale, group), torch.bfloat16)


def decode(weight: Tensor, scale: Tensor, group: int = 0) -> Tensor:
    """Return codes [out, in, ...] times their scale, one or one for each row, in float32; groups of a row are turned
    back if `group` says that they were turned."""
    rows = scale.float().reshape(-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else scale.float().reshape(())
    values = weight.float() * rows
    if not group:
        return values
    return (values.unflatten(1, (-1, group)) @ hadamard(group)).flatten(1)


@cache
def hadamard(size: int) -> Tensor:
    """Return the regular Hadamard matrix [size, size] of a power of 4: symmetric, and its own inverse."""
    four = torch.tensor([[1.0, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]])
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(matrix, four)
    return matrix / size**0.5
