"""What a LoRA changes of each parameter: low-rank products (Hu et al. 2021), DoRA (Liu et al. 2024) and differences.
All are relative to the weights as they were, so several add up in any order."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollforce.checkpoints.shapes import SIZES, blocks_of
from rollforce.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LowRank:
    """A product of two thin matrices: down [rank, in], up [out, rank]; strength is alpha / rank.

    `magnitude` makes it a DoRA: the sum of weight and product gets these norms, of its rows ([out], [out, 1]) or of its
    columns ([1, in]). A scale below 1 gives what lies on the straight line between the weight and that."""

    down: Tensor
    up: Tensor
    strength: float
    magnitude: Tensor | None = None

    def change(self, weight: Tensor) -> Tensor:
        """Return what is added to a weight at scale 1, in float32 and on its device."""
        up, down = (each.to(weight.device, torch.float32).flatten(1) for each in (self.up, self.down))
        product = self.strength * (up @ down).reshape(weight.shape)
        if self.magnitude is None:
            return product
        whole = weight.float() + product
        axis = 0 if self.of_rows(weight.shape[0]) else 1
        norm = torch.linalg.vector_norm(whole, dim=[n for n in range(whole.dim()) if n != axis], keepdim=True)
        wanted = self.magnitude.to(whole).reshape(norm.shape)
        return whole * (wanted / norm.clamp_min(torch.finfo(whole.dtype).eps)) - weight.float()

    def of_rows(self, rows: int) -> bool:
        """Whether a DoRA's magnitudes are of the weight's outputs; else of its inputs, [1, in]."""
        sizes = list(self.magnitude.shape) if self.magnitude is not None else []
        return sizes[:1] == [rows] or (len(sizes) > 2 and math.prod(sizes) == rows)


@dataclass(frozen=True)
class Delta:
    """A difference of a whole parameter, of its shape."""

    values: Tensor
    strength: float = 1.0

    def change(self, weight: Tensor) -> Tensor:
        """Return what is added to a parameter at scale 1, in float32 and on its device."""
        return self.strength * self.values.to(weight.device, torch.float32).reshape(weight.shape)


Change = LowRank | Delta
Changes = Mapping[str, tuple[Change, ...]]
"""By the parameter that is changed."""


def changes_of(lora: Mapping[str, Tensor], shapes: Shapes, alpha: float | None = None,
               name: str = "the LoRA") -> dict[str, tuple[Change, ...]]:  # fmt: skip
    """Return what a LoRA in our names changes of each parameter, checked against the shapes of all parameters.

    `alpha`: else each module's own, else its rank (LongLive: both 256). `name` is what errors call it.
    CheckpointError if it holds nothing, is of another model or lacks a side; it says which sizes differ."""
    check_tensors(lora, name)
    _check_finite(lora, name)
    found: dict[str, list[Change]] = defaultdict(list)
    for module in sorted({key.removesuffix(part) for key in lora for part in _PARTS if key.endswith(part)}):
        pair = _pair(lora, module, alpha, name)
        found[f"{module}.weight"].append(pair)
        if (bias := lora.get(f"{module}.lora_B.bias")) is not None:
            found[f"{module}.bias"].append(Delta(bias, pair.strength))
    for key, values in lora.items():
        if key.endswith(".diff"):
            found[key.removesuffix(".diff")].append(Delta(values))
    if not found:
        raise CheckpointError(f"{name} holds nothing.")
    _check(found, shapes, name)
    return {parameter: tuple(changes) for parameter, changes in found.items()}


def check_tensors(lora: Mapping[str, Tensor], name: str) -> None:
    """Raise CheckpointError for tensors whose shapes or dtypes are no LoRA's, whatever model it is of."""
    for key, tensor in lora.items():
        number, side = key.endswith(".alpha"), key.endswith((".lora_A.weight", ".lora_B.weight"))
        if not (tensor.is_floating_point() or (number and not tensor.is_complex())):
            raise CheckpointError(f"{name}: {key} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is no "
                                  "LoRA's. If it is quantised, take the LoRA that it was made from.")  # fmt: skip
        if (number and tensor.numel() != 1) or (side and (tensor.dim() < 2 or not tensor.numel())):
            wanted = "one number" if number else "a matrix"
            raise CheckpointError(f"{name}: {key} is {list(tensor.shape)}; {wanted} was expected.")


def _check_finite(lora: Mapping[str, Tensor], name: str) -> None:
    if wrong := [key for key, tensor in lora.items() if not tensor.is_meta and not tensor.float().isfinite().all()]:
        raise CheckpointError(f"{name} holds numbers that are not finite in {len(wrong)} tensors, e.g. {wrong[0]}: it "
                              "is damaged, or its training failed. Fetch it again, or take another.")  # fmt: skip


def add_up(weight: Tensor, changes: Sequence[tuple[float, Change]], dtype: torch.dtype | None = None) -> Tensor:
    """Return a weight with changes added, each so many times; all of them of the weight as it was, summed in float32.

    `dtype` of the result: else the weight's, and bfloat16 where that has eight bits, in which most changes vanish."""
    total = weight.float()
    for scale, change in changes:
        total = total + scale * change.change(weight)
    return total.to(dtype or wide(weight.dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a sum with a weight of this dtype is stored: itself, or bfloat16 for eight bits."""
    return dtype if dtype.itemsize > 1 else torch.bfloat16


_PARTS = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".alpha", ".dora_scale")


def _pair(lora: Mapping[str, Tensor], module: str, alpha: float | None, name: str) -> LowRank:
    down, up, _, own, magnitude = (lora.get(f"{module}{part}") for part in _PARTS)
    if down is None or up is None:
        raise CheckpointError(f"{name} holds one side of {module} and not the other, or what belongs to a pair and no "
                              "pair. It is not complete: download or save it again.")  # fmt: skip
    if len(down) != up.flatten(1).shape[1]:
        raise CheckpointError(f"{name}: the two sides of {module}, {list(down.shape)} and {list(up.shape)}, have no "
                              "common rank: no pair.")  # fmt: skip
    rank = len(down)
    told = alpha if alpha is not None else rank if own is None else float(own.item())
    return LowRank(down, up, told / rank, magnitude)


def _check(found: Mapping[str, Sequence[Change]], shapes: Shapes, name: str) -> None:
    if absent := [parameter for parameter in found if parameter not in shapes]:
        raise CheckpointError(f"{name} changes {absent[0].removesuffix('.weight')}, which these weights lack: it is of "
                              f"another model{_why_absent(absent, shapes)}.")  # fmt: skip
    wrong = {parameter: sizes for parameter, changes in found.items() for change in changes
             if (sizes := _sizes(change, shapes[parameter])) is not None}  # fmt: skip
    if wrong:
        parameter = next((each for each in wrong if "attn1" in each), next(iter(wrong)))
        theirs, here = wrong[parameter], shapes[parameter]
        raise CheckpointError(f"{parameter.removesuffix('.weight')}: {name} is for a weight {list(theirs)}"
                              f"{_known(theirs)}, these weights have {list(here)}{_known(here)}. Sizes differ in "
                              f"{len(wrong)} of the {len(found)} parameters that it changes: it is of another "
                              "model.")  # fmt: skip


def _sizes(change: Change, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of the weight that a change is for, if that is not this one."""
    if isinstance(change, Delta):
        return None if tuple(change.values.shape) == shape else tuple(change.values.shape)
    sizes = (len(change.up), *change.down.shape[1:])
    if len(shape) < 2 or sizes not in (shape, (shape[0], math.prod(shape[1:]))):
        return sizes
    if change.magnitude is None or change.magnitude.numel() == shape[0 if change.of_rows(shape[0]) else 1]:
        return None
    return tuple(change.magnitude.shape)


def _known(sizes: tuple[int, ...]) -> str:
    """What people call the models that have a weight of these sizes."""
    return next((f" ({SIZES[size]})" for size in sizes if size in SIZES), "")


def _why_absent(absent: Sequence[str], shapes: Shapes) -> str:
    numbers = [int(match[1]) for each in absent if (match := re.match(r"blocks\.(\d+)\.", each))]
    here = blocks_of(shapes) if any(each.startswith("blocks.") for each in shapes) else 0
    if numbers and max(numbers) >= here:
        return f" with {max(numbers) + 1} blocks or more, where these have {here}"
    if any("add_" in each or "image_embedder" in each or "norm_added" in each for each in absent):
        return ", which reads an image (image to video)"
    return ""
