"""LoRAs on a transformer: live, as a branch beside its linears, or merged into its weights (Hu et al. 2021).

    lora.add(model, "ink", read_checkpoint("ink.safetensors").state, scale=0.8)
    lora.rescale(model, "ink", 0.3)         # between two ticks; nothing is compiled again
    lora.remove(model, "ink")               # the weights were never touched

A linear computes W x + sum over LoRAs of scale * alpha / rank * B A x. A `Condition` and a cache that were made before
a change are of the model as it was: make the condition again; the past falls out of the cache as it would anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollforce.checkpoints.lora_names import Branch, branches_of, lora_to_ours, merge_lora, targets_of
from rollforce.errors import CheckpointError, ConfigError
from rollforce.models.runtime.quantize import is_quantised
from rollforce.models.transformer.transformer import VideoTransformer


class LoraLinear(nn.Linear):
    """A linear with branches. Weight and bias are those of the linear it stands in for, under the same names.

    The branches of all LoRAs lie side by side, so two thin products serve any number of them, and a scale is a number
    in a tensor. They are no part of the state dict."""

    down: Tensor  # [ranks, in]
    up: Tensor  # [out, ranks]
    strength: Tensor  # [ranks], float32: scale * alpha / rank

    def __init__(self, linear: nn.Linear, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        self.scales: dict[str, float] = {}
        self.parts: dict[str, tuple[int, float]] = {}  # of each LoRA: columns, alpha / rank
        dtype = linear.weight.dtype
        self.register_buffer("down", torch.empty(0, self.in_features, device=device, dtype=dtype), persistent=False)
        self.register_buffer("up", torch.empty(self.out_features, 0, device=device, dtype=dtype), persistent=False)
        self.register_buffer("strength", torch.empty(0, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.down) * self.strength
        return F.linear(x, self.weight, self.bias) + F.linear(inner.to(self.up.dtype), self.up)

    def put(self, name: str, branch: Branch, scale: float) -> None:
        """Add a branch behind the others."""
        rank = branch.down.shape[0]
        self.parts[name], self.scales[name] = (rank, branch.strength), scale
        self.down = torch.cat([self.down, branch.down.to(self.down)])
        self.up = torch.cat([self.up, branch.up.to(self.up)], dim=1)
        self.strength = torch.cat([self.strength, self.strength.new_full((rank,), scale * branch.strength)])

    def rescale(self, name: str, scale: float) -> None:
        """Write another scale where the old one stood."""
        self.scales[name] = scale
        self.strength[self._columns(name)] = scale * self.parts[name][1]

    def drop(self, name: str) -> None:
        """Forget a branch; the others stay as they are."""
        stay = torch.ones(len(self.strength), dtype=torch.bool, device=self.strength.device)
        stay[self._columns(name)] = False
        self.down, self.up, self.strength = self.down[stay], self.up[:, stay], self.strength[stay]
        del self.parts[name], self.scales[name]

    def unwrap(self) -> nn.Linear:
        """Return the linear that this stands in for."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def _columns(self, name: str) -> slice:
        names = list(self.parts)
        start = sum(self.parts[other][0] for other in names[: names.index(name)])
        return slice(start, start + self.parts[name][0])


@torch.no_grad()
def add(model: VideoTransformer, name: str, lora: Mapping[str, Tensor], scale: float = 1.0,
        alpha: float | None = None) -> None:  # fmt: skip
    """Put a LoRA on the model, beside those that are on it, and call it `name`.

    `lora`: names as `read_checkpoint` gives them, or any that it understands; `alpha`: else each module's own, else its
    rank. Raises CheckpointError, before anything changes, if the LoRA is of another model."""
    if name in scales(model):
        raise ConfigError(f"a LoRA {name!r} is on the model already. Remove it first, or give this one another name.")
    factor = _check_scale(scale)
    shapes = {module: tuple(part.weight.shape) for module, part in model.named_modules() if isinstance(part, nn.Linear)}
    ours = lora_to_ours(lora, f"LoRA {name!r}")
    if any(module == "patch_embedding" for module in targets_of(ours)):
        raise CheckpointError(f"LoRA {name!r} changes patch_embedding, which is no linear: it can only be merged.")
    branches = branches_of(ours, shapes, alpha, f"LoRA {name!r}")
    if not branches:
        raise CheckpointError(f"LoRA {name!r} holds nothing.")
    for module, branch in branches.items():
        linear = model.get_submodule(module)
        if not isinstance(linear, LoraLinear):
            assert isinstance(linear, nn.Linear)
            linear = LoraLinear(linear, model.device)
            _replace(model, module, linear)
        linear.put(name, branch, factor)


@torch.no_grad()
def rescale(model: VideoTransformer, name: str, scale: float) -> None:
    """Change the scale of a LoRA that is on the model; 0 switches it off."""
    factor = _check_scale(scale)
    for _, linear in _find_branched(model, name):
        linear.rescale(name, factor)


@torch.no_grad()
def remove(model: VideoTransformer, name: str) -> None:
    """Take a LoRA off. Without any, the model is what it was: the same modules with the same weights."""
    for module, linear in _find_branched(model, name):
        linear.drop(name)
        if not linear.parts:
            _replace(model, module, linear.unwrap())


def scales(model: VideoTransformer) -> dict[str, float]:
    """Return the LoRAs that are on the model and their scales, in the order they came."""
    on: dict[str, float] = {}
    for linear in model.modules():
        if isinstance(linear, LoraLinear):
            on |= linear.scales
    return on


@torch.no_grad()
def merge(model: VideoTransformer, lora: Mapping[str, Tensor], scale: float = 1.0, alpha: float | None = None) -> None:
    """Bake a LoRA into the weights: W + scale * alpha / rank * B A, summed in float32. It costs nothing from then on.

    There is no way back but to load the model again. Raises ConfigError if the weights are quantised."""
    factor, names = _check_scale(scale), lora_to_ours(lora, "the LoRA")
    weights = {name: weight.data for name, weight in model.named_parameters()}
    for module in targets_of(names):
        if is_quantised(weights.get(f"{module}.weight", torch.empty(0))):
            raise ConfigError(f"{module} is quantised: merge LoRAs first, or add this one live.")
    scaled = {name: value.float() * factor if ".lora_B." in name else value for name, value in names.items()}
    touched = {f"{module}.weight": weights[f"{module}.weight"] for module in targets_of(names)
               if f"{module}.weight" in weights}  # fmt: skip
    for name, merged in merge_lora(touched, scaled, alpha).items():
        weights[name].copy_(merged)


def _find_branched(model: VideoTransformer, name: str) -> list[tuple[str, LoraLinear]]:
    found = [(module, part) for module, part in model.named_modules()
             if isinstance(part, LoraLinear) and name in part.parts]  # fmt: skip
    if not found:
        raise ConfigError(f"no LoRA {name!r} is on the model. There {_list_names(scales(model))}.")
    return found


def _list_names(names: Mapping[str, float]) -> str:
    return f"are: {', '.join(names)}" if names else "is none"


def _replace(model: nn.Module, module: str, part: nn.Module) -> None:
    outer, _, last = module.rpartition(".")
    setattr(model.get_submodule(outer), last, part)


def _check_scale(scale: float) -> float:
    if not math.isfinite(scale):
        raise ConfigError(f"the scale of a LoRA is {scale}; give a finite number, usually between 0 and 1.")
    return float(scale)
