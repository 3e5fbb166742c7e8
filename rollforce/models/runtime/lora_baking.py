"""LoRAs of a command line: read, checked against a model, and baked into its weights before it runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rollforce.checkpoints.lora_scale import find_lora
from rollforce.checkpoints.read import expect, read_checkpoint
from rollforce.models.runtime.lora import changes_on, merge_changes
from rollforce.models.transformer.transformer import VideoTransformer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that was read from a file and fits a model: its tensors in our names, and its scale."""

    name: str
    state: Mapping[str, Tensor]
    scale: float


def read(files: Sequence[str], model: VideoTransformer) -> list[LoraFile]:
    """Read LoRAs, each FILE or FILE=SCALE, and check that they fit a model, whose weights are not looked at.

    Raises ConfigError for a scale or a file that is not there, CheckpointError for what is no LoRA of this model."""
    adapters = []
    for number, file in enumerate(files):
        path, scale = find_lora(file)
        found = expect(read_checkpoint(path), "lora")
        changes_on(model, found.state, None, path.name)
        log.info("%s at %g: %s", path.name, scale, found.about)
        adapters.append(LoraFile(f"{number} {path.name}", found.state, scale))
    return adapters


@torch.no_grad()
def bake(model: VideoTransformer, adapters: Sequence[LoraFile], kind: str | None = None) -> list[LoraFile]:
    """Merge LoRAs into the weights, all at once: each weight is rounded once. Return what is to be added live.

    `kind`: eight bits in which the blocks' linears will be stored, too coarse for most changes: the low-rank pairs on
    them are returned, to be added once they are quantised. Whole changes of them (DoRA, .diff) are merged with a
    warning."""
    beside = [_part(adapter, True) for adapter in adapters] if kind else []
    merged = [_part(adapter, False) for adapter in adapters] if kind else adapters
    for adapter in merged:
        if kind and (whole := [key for key in adapter.state if _is_whole(model, key)]):
            log.warning("%s changes %d whole weights of the blocks (DoRA or .diff, first: %s); they are rounded to %s "
                        "with them, and small changes vanish. Leave --quantize out to keep them.",
                        adapter.name.split(" ", 1)[1], len(whole), whole[0], kind)  # fmt: skip
    merge_changes(model, [(adapter.scale, changes_on(model, adapter.state, None, adapter.name))
                   for adapter in merged if adapter.state])  # fmt: skip
    return [adapter for adapter in beside if adapter.state]


def _part(adapter: LoraFile, live: bool) -> LoraFile:
    """An adapter's low-rank pairs on the blocks' linears, with all that belongs to them; or all else."""
    pairs = {key.rpartition(".lora_A")[0] for key in adapter.state if key.startswith("blocks.") and ".lora_A." in key}
    pairs = {module for module in pairs if f"{module}.dora_scale" not in adapter.state}
    own = {key for key in adapter.state if key.partition(".lora_")[0].removesuffix(".alpha") in pairs}
    return LoraFile(adapter.name, {key: value for key, value in adapter.state.items() if (key in own) == live},
                   adapter.scale)  # fmt: skip


def _is_whole(model: VideoTransformer, key: str) -> bool:
    """Whether this tensor makes a change of a whole weight of a block's linear."""
    module = key.removesuffix(".dora_scale").removesuffix(".weight.diff")
    return module != key and key.startswith("blocks.") and isinstance(model.get_submodule(module), nn.Linear)
