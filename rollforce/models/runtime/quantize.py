"""Weights of the blocks' linears in eight bits, one scale per output channel (torchao, weight-only).

Only storage shrinks: a product is still made in the dtype the weights had. Norms, modulation, embedders and the last
linear keep their precision; they are a few hundredths of a large model and hold most of the error."""

from __future__ import annotations

from importlib import import_module, util

import torch
from torch import Tensor, nn

from rollforce.errors import ConfigError
from rollforce.models.runtime.choices import check_choice
from rollforce.models.transformer.transformer import VideoTransformer

FP8_CAPABILITY = (8, 9)  # of GPUs that know the number format


@torch.no_grad()
def quantise(model: VideoTransformer, kind: str) -> None:
    """Store the weights of the blocks' linears as `kind`, int8 or fp8 (e4m3), in place.

    Do it once LoRAs are merged (live ones may come later) and before blocks are compiled or offloaded. ConfigError if
    the kind is not known, torchao is missing, or the device is not for it."""
    check(kind, model.device)
    make = import_module("torchao.quantization")
    config = (make.Int8WeightOnlyConfig(version=2, set_inductor_config=False) if kind == "int8"
              else make.Float8WeightOnlyConfig(set_inductor_config=False))  # fmt: skip
    for block in model.blocks:
        make.quantize_(block, config, filter_fn=lambda module, name: isinstance(module, nn.Linear))


def check(kind: str, device: torch.device) -> None:
    """ConfigError, with the remedy, unless `quantise` can do this here."""
    check_choice("quantize", kind)
    if util.find_spec("torchao") is None:
        raise ConfigError(f"quantisation {kind!r} needs torchao, which is not installed: pip install torchao")
    if kind == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ConfigError(f"{torch.cuda.get_device_name(device)} has no fp8 (sm_89 or later has). Use int8.")


def stored_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor as it is stored."""
    return sum(part.nbytes for part in parts_of(tensor))


def parts_of(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that hold its numbers: itself, or those that a quantised one is made of."""
    if not is_quantised(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def is_quantised(tensor: Tensor) -> bool:
    """Return whether this weight is stored as several tensors that stand for its numbers."""
    return hasattr(tensor, "__tensor_flatten__")
