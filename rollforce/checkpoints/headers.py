"""Names, shapes and number formats of weights, from the heads of their files: no weight is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rollforce.checkpoints.containers import stripped, unpack
from rollforce.checkpoints.distributed import METADATA, read_distributed
from rollforce.checkpoints.names import plain, recognise, translate
from rollforce.checkpoints.safetensors_folder import shards_of
from rollforce.checkpoints.unread import quantisation_of
from rollforce.checkpoints.weight_file import read_files

SCALES = {".comfy_quant": "comfy_quant (ComfyUI)", ".scale_weight": "fp8_scaled (ComfyUI)",
          ".weight_scale": "scaled weights"}  # fmt: skip
BESIDE = (*SCALES, ".input_scale", ".scale_input", ".quant_map", ".weight_scale_2", ".weight_format", "._scale",
          ".qzeros", ".scales", ".nested_absmax", ".nested_quant_map", "scaled_fp8", "spiece_model")  # fmt: skip
EXACT = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class WeightHeader:
    """What a file of weights, or all of its shards, says before its numbers.

    `format` safetensors, pickle or gguf; `where` the container that a pickle's weights are in; `tensors` by bare names,
    on the meta device; `quantised` how its numbers are packed, "" if they are plain; `metadata` a file's own words."""

    path: Path
    format: str
    where: str
    tensors: dict[str, Tensor] = field(repr=False)
    quantised: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """How many numbers there are."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def numbers(self) -> str:
        """The number formats of the matrices, such as "bfloat16"."""
        found = {str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values() if tensor.dim() > 1}
        return self.quantised or ", ".join(sorted(found))

    def ours(self) -> tuple[str, dict[str, Tensor]] | None:
        """Return the kind of these weights (a family of names.py) and them under our names, without those that have no
        name there; None if they are of no family."""
        bare = {name: tensor for name, tensor in self.tensors.items() if not name.endswith(BESIDE)}
        found = recognise(bare)
        if found is None:
            return None
        family, original = found
        if not original:
            return family.kind, plain(bare)
        named = {translate(name, family.table): tensor for name, tensor in bare.items()}
        return family.kind, {name: tensor for name, tensor in named.items() if name is not None}


def read_header(path: Path) -> WeightHeader:
    """Read the header of a file of weights, those of all shards of an index, or the .metadata of a distributed folder:
    tensors are mapped, and no number is read. CheckpointError if there is none, or it is damaged."""
    found = read_distributed(path.parent) if path.name == METADATA else read_files(shards_of(path))
    state: dict[str, Tensor]
    where, state = unpack(found.content, path.name)
    quantised = found.format if re.match(r"GGUF.*\bI?Q\d", found.format) else packing_of(state)
    tensors = {name: tensor.to("meta") for name, tensor in stripped(state, path.name).items()}
    return WeightHeader(path, found.format, where, tensors, quantised, dict(found.metadata))


def packing_of(tensors: Mapping[str, Tensor]) -> str:
    """Return how weights are quantised, by the names beside them or their number formats; "" if they are plain."""
    if kind := quantisation_of(tensors):
        return kind
    for ending, word in SCALES.items():
        if any(name.endswith(ending) for name in tensors):
            return word
    matrices = {tensor.dtype for tensor in tensors.values() if tensor.dim() > 1} - EXACT
    if "scaled_fp8" in tensors:
        return "fp8_scaled (ComfyUI)"
    if any(dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for dtype in matrices):
        return "fp8"
    return f"{str(min(matrices, key=str)).removeprefix('torch.')}" if matrices else ""
