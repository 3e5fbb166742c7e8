"""LoRAs on a transformer: live, or merged into its weights (Hu et al. 2021; Liu et al. 2024).

    lora.add(model, "ink", read_checkpoint("ink.safetensors").state, scale=0.8)
    lora.rescale(model, "ink", 0.3)         # between two ticks; nothing is compiled again
    lora.remove(model, "ink")               # the weights are, bit for bit, what they were

Live, a low-rank pair is a branch beside its linear: W x + scale * alpha / rank * B A x, whose weight is not touched.
What is no branch (biases, norms, modulation, the patch embedding, DoRA, differences of whole weights) is written into
the parameter itself, of which a copy is kept: while it is on, a state dict holds it. A `Condition` and a cache that
were made before a change are of the model as it was: make the condition again; the past falls out of the cache as it
would anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rollforce.checkpoints.lora_changes import Change, Changes, LowRank, add_up, changes_of
from rollforce.checkpoints.lora_names import lora_to_ours
from rollforce.errors import ConfigError
from rollforce.models.runtime.lora_linear import LoraLinear
from rollforce.models.runtime.quantize import is_quantised
from rollforce.models.transformer.transformer import VideoTransformer


@dataclass
class Live:
    """The LoRAs on a model: their scales in the order they came, and what is written into parameters themselves."""

    scales: dict[str, float] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)  # by parameter, as it was
    changes: dict[str, dict[str, list[Change]]] = field(default_factory=dict)  # by parameter and LoRA

    def write(self, model: VideoTransformer, parameters: Iterable[str]) -> None:
        """Write parameters anew: as they were, with all changes at their scales, rounded once."""
        for name in list(parameters):
            terms = [(self.scales[lora], change) for lora, own in self.changes[name].items() for change in own]
            weight, before = model.get_parameter(name), self.before[name]
            weight.copy_(add_up(before, terms, weight.dtype))
            if not terms:
                del self.before[name], self.changes[name]


@torch.no_grad()
def add(model: VideoTransformer, name: str, lora: Mapping[str, Tensor], scale: float = 1.0,
        alpha: float | None = None) -> None:  # fmt: skip
    """Put a LoRA on the model, beside those that are on it, and call it `name`.

    `lora`: names as `read_checkpoint` gives them, or any that it understands; `alpha`: else each module's own, else its
    rank. Raises, before anything changes, CheckpointError if the LoRA is of another model, and ConfigError if it
    changes a weight in eight bits other than by a low-rank pair."""
    if name in scales(model):
        raise ConfigError(f"a LoRA {name!r} is on the model already. Remove it first, or give this one another name.")
    factor, changes = _check_scale(scale), changes_on(model, lora, alpha, f"LoRA {name!r}")
    branches = {parameter: change for parameter, own in changes.items() for change in own
                if isinstance(change, LowRank) and _is_branch(model, parameter, change)}  # fmt: skip
    written = {parameter: rest for parameter, own in changes.items()
               if (rest := [change for change in own if change is not branches.get(parameter)])}  # fmt: skip
    _check_writable(model, written, f"LoRA {name!r}")
    live = model.__dict__.setdefault("loras", Live())
    live.scales[name] = factor
    for parameter, branch in branches.items():
        _branched(model, parameter.removesuffix(".weight")).put(name, branch, factor)
    for parameter, own in written.items():
        live.before.setdefault(parameter, model.get_parameter(parameter).detach().clone())
        live.changes.setdefault(parameter, {})[name] = own
    live.write(model, written)


@torch.no_grad()
def rescale(model: VideoTransformer, name: str, scale: float) -> None:
    """Change the scale of a LoRA that is on the model; 0 switches it off."""
    factor, live = _check_scale(scale), _find(model, name)
    live.scales[name] = factor
    for _, linear in _linears_with(model, name):
        linear.rescale(name, factor)
    live.write(model, [parameter for parameter, loras in live.changes.items() if name in loras])


@torch.no_grad()
def remove(model: VideoTransformer, name: str) -> None:
    """Take a LoRA off. Without any, the model is what it was: the same modules with the same weights."""
    live = _find(model, name)
    for module, linear in _linears_with(model, name):
        linear.drop(name)
        if not linear.parts:
            _replace(model, module, linear.unwrap())
    del live.scales[name]
    live.write(model, [parameter for parameter, loras in live.changes.items() if loras.pop(name, None)])
    if not live.scales:
        del model.__dict__["loras"]


def scales(model: VideoTransformer) -> dict[str, float]:
    """Return the LoRAs that are on the model and their scales, in the order they came."""
    return dict(model.__dict__.get("loras", Live()).scales)


@torch.no_grad()
def merge(model: VideoTransformer, lora: Mapping[str, Tensor], scale: float = 1.0, alpha: float | None = None) -> None:
    """Bake a LoRA into the weights: W + scale * alpha / rank * B A, and what else it changes, summed in float32. It
    costs nothing from then on.

    There is no way back but to load the model again. Raises ConfigError if weights that it changes have eight bits."""
    merge_changes(model, [(_check_scale(scale), changes_on(model, lora, alpha, "the LoRA"))])


@torch.no_grad()
def merge_changes(model: VideoTransformer, loras: Sequence[tuple[float, Changes]]) -> None:
    """Bake what LoRAs change into the weights, each so many times, with one rounding. ConfigError on eight bits."""
    terms: dict[str, list[tuple[float, Change]]] = {}
    for scale, changes in loras:
        for name, own in changes.items():
            terms.setdefault(name, []).extend((scale, change) for change in own)
    _check_writable(model, terms, "the LoRA")
    live: Live = model.__dict__.get("loras", Live())
    for name, all_ in terms.items():
        weight = live.before.get(name, model.get_parameter(name))
        weight.copy_(add_up(weight, all_, weight.dtype))
    live.write(model, [name for name in terms if name in live.before])


def changes_on(model: VideoTransformer, lora: Mapping[str, Tensor], alpha: float | None, name: str) -> Changes:
    """Return what a LoRA changes of a model's parameters. CheckpointError if it is of another model."""
    shapes = {parameter: tuple(weight.shape) for parameter, weight in model.named_parameters()}
    return changes_of(lora_to_ours(lora, name), shapes, alpha, name)


def _is_branch(model: VideoTransformer, parameter: str, change: LowRank) -> bool:
    module = model.get_submodule(parameter.removesuffix(".weight"))
    return change.magnitude is None and isinstance(module, nn.Linear)


def _check_writable(model: VideoTransformer, parameters: Iterable[str], name: str) -> None:
    for parameter in parameters:
        weight = model.get_parameter(parameter)
        if is_quantised(weight) or weight.dtype.itemsize == 1:
            raise ConfigError(f"{parameter} is quantised: merge LoRAs first, or add this one live. {name} changes that "
                              "weight itself, in whose eight bits most of a change is rounded away; live, only a "
                              "low-rank pair can lie beside it.")  # fmt: skip


def _find(model: VideoTransformer, name: str) -> Live:
    if name not in (on := scales(model)):
        there = f"There are: {', '.join(on)}." if on else "There is none."
        raise ConfigError(f"no LoRA {name!r} is on the model. {there}")
    return model.__dict__["loras"]


def _linears_with(model: VideoTransformer, name: str) -> list[tuple[str, LoraLinear]]:
    return [(module, part) for module, part in model.named_modules()
            if isinstance(part, LoraLinear) and name in part.parts]  # fmt: skip


def _branched(model: VideoTransformer, module: str) -> LoraLinear:
    """The linear of this name, which can have branches from now on."""
    linear = model.get_submodule(module)
    if not isinstance(linear, LoraLinear):
        assert isinstance(linear, nn.Linear)
        linear = LoraLinear(linear, model.device)
        _replace(model, module, linear)
    return linear


def _replace(model: nn.Module, module: str, part: nn.Module) -> None:
    outer, _, last = module.rpartition(".")
    setattr(model.get_submodule(outer), last, part)


def _check_scale(scale: float) -> float:
    if not math.isfinite(scale):
        raise ConfigError(f"the scale of a LoRA is {scale}; give a finite number, usually between 0 and 1.")
    return float(scale)
