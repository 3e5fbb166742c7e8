"""Weights of the blocks' linears in eight bits, one scale per output channel (torchao, weight-only).

Only storage shrinks: a product is still made in the dtype the weights had. Norms, modulation, embedders and the last
linear keep their precision; they are a few hundredths of a large model and hold most of the error."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module, util

import torch
from torch import Tensor, nn

from rollforce.errors import ConfigError
from rollforce.models.transformer.transformer import VideoTransformer

KINDS = ("int8", "fp8")
FP8_CAPABILITY = (8, 9)  # of GPUs that know the number format


@dataclass(frozen=True)
class Saving:
    """Bytes of all weights of a transformer, before and after."""

    before: int
    after: int

    @property
    def saved(self) -> int:
        return self.before - self.after


@torch.no_grad()
def quantise(model: VideoTransformer, kind: str) -> Saving:
    """Store the weights of the blocks' linears as `kind`, int8 or fp8 (e4m3), in place.

    Do it once LoRAs are merged (live ones may come later) and before blocks are compiled or offloaded. ConfigError if
    the kind is not known, torchao is missing, or the device is not for it.
    """
    check(kind, model.device)
    make = import_module("torchao.quantization")
    config = (make.Int8WeightOnlyConfig(version=2, set_inductor_config=False) if kind == "int8"
              else make.Float8WeightOnlyConfig(set_inductor_config=False))  # fmt: skip
    before = weight_bytes(model)
    for block in model.blocks:
        make.quantize_(block, config, filter_fn=_is_linear)
    return Saving(before, weight_bytes(model))


def estimate(model: VideoTransformer) -> Saving:
    """What `quantise` will save, from shapes alone: the model may be on the meta device. Both kinds save the same."""
    linears = [part for block in model.blocks for part in block.modules() if isinstance(part, nn.Linear)]
    saved = sum(linear.weight.nbytes - linear.weight.numel() - 4 * linear.out_features for linear in linears)
    return Saving(weight_bytes(model), weight_bytes(model) - saved)


def check(kind: str, device: torch.device) -> None:
    """ConfigError, with the remedy, unless `quantise` can do this here."""
    if kind not in KINDS:
        raise ConfigError(f"quantisation {kind!r} is not known. Use one of: {', '.join(KINDS)}.")
    if util.find_spec("torchao") is None:
        raise ConfigError(f"quantisation {kind!r} needs torchao, which is not installed: pip install torchao")
    if kind == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ConfigError(f"{torch.cuda.get_device_name(device)} has no fp8 (sm_89 or later has). Use int8.")


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the parameters of a model take, whatever they are stored as."""
    return sum(stored_bytes(parameter) for parameter in model.parameters())


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor as it is stored."""
    return sum(part.nbytes for part in parts_of(tensor))


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that hold its numbers: itself, or those that a quantised one is made of."""
    if not is_quantised(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def is_quantised(tensor: Tensor) -> bool:
    """Whether this weight is stored as several tensors that stand for its numbers."""
    return hasattr(tensor, "__tensor_flatten__")


def _is_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear)
