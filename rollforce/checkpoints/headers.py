"""Names, shapes and number formats of weights, from the heads of their files: no weight is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rollforce.checkpoints.formats import format_of
from rollforce.checkpoints.names import plain, recognise, translate
from rollforce.checkpoints.read import PICKLES, read_pickle, stripped, unpack
from rollforce.checkpoints.safetensors_folder import shards_of
from rollforce.errors import CheckpointError, stand_in

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
         "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # fmt: skip
SCALES = {".comfy_quant": "comfy_quant (ComfyUI)", ".scale_weight": "fp8_scaled (ComfyUI)",
          ".weight_scale": "scaled weights", ".SCB": "int8 (bitsandbytes)", ".absmax": "4 bits (bitsandbytes)",
          "._data": "quanto", ".qweight": "GPTQ or AWQ", ".weight_scale_inv": "scaled fp8"}  # fmt: skip
BESIDE = (*SCALES, ".input_scale", ".scale_input", ".quant_map", ".weight_scale_2", ".weight_format", "._scale",
          ".qzeros", ".scales", ".nested_absmax", ".nested_quant_map", "scaled_fp8", "spiece_model")  # fmt: skip
EXACT = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class Header:
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


def read_header(path: Path) -> Header:
    """Read the header of a file of weights, or those of all shards of an index. CheckpointError if there is none."""
    shards = shards_of(path)
    if absent := [each.name for each in shards if not each.is_file()]:
        raise CheckpointError(f"{len(absent)} of {len(shards)} weight files are missing in {path.parent}: "
                              f"{', '.join(absent[:5])}. Download them again.")  # fmt: skip
    parts = [_read_one(each) for each in shards]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    quantised = next((part.quantised for part in parts if part.quantised), "")
    return Header(path, parts[0].format, parts[0].where, tensors, quantised, parts[0].metadata)


def _read_one(path: Path) -> Header:
    if told := stand_in(path):
        raise CheckpointError(told)
    told = format_of(path)
    if told == "safetensors":
        return _read_safetensors(path)
    if told == "gguf":
        return _read_gguf(path)
    if told == "pickle" or path.suffix in PICKLES:
        where, state = unpack(read_pickle(path), path.name)
        state = {name: tensor.to("meta") for name, tensor in stripped(state, path.name).items()}
        return Header(path, "pickle", where, state, packing_of(state))
    raise CheckpointError(f"{path} is no file of weights: it is neither safetensors, nor what torch.save writes, nor "
                          "GGUF; or it is damaged. Download it again.")  # fmt: skip


def _read_safetensors(path: Path) -> Header:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            told = {name: (each.get_shape(), str(each.get_dtype())) for name, each in slices.items()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not complete: {error}. Download it again.") from error
    tensors = {name: torch.empty(shape, dtype=TORCH.get(kind, torch.uint8), device="meta")
               for name, (shape, kind) in told.items()}  # fmt: skip
    tensors = stripped(tensors, path.name)
    return Header(path, "safetensors", "", tensors, packing_of(tensors), metadata)


def _read_gguf(path: Path) -> Header:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError(f"{path} is a GGUF file, and the package gguf is not installed: pip install gguf.") \
            from error  # fmt: skip
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise CheckpointError(f"{path} is a GGUF file that is damaged or not complete: {error}.") from error
    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    tensors = {each.name: torch.empty([int(n) for n in reversed(each.shape)], device="meta") for each in reader.tensors}
    packed = sorted({kind for kind in kinds.values() if kind not in ("F32", "F16", "BF16", "F64")})
    architecture = reader.get_field("general.architecture")
    metadata = {"architecture": str(architecture.contents())} if architecture else {}
    quantised = f"GGUF {', '.join(packed)}" if packed else ""
    return Header(path, "gguf", "", stripped(tensors, path.name), quantised, metadata)


def packing_of(tensors: dict[str, Tensor]) -> str:
    """Return how weights are quantised, by the names beside them or their number formats; "" if they are plain."""
    for ending, word in SCALES.items():
        if any(name.endswith(ending) for name in tensors):
            return word
    matrices = {tensor.dtype for tensor in tensors.values() if tensor.dim() > 1} - EXACT
    if "scaled_fp8" in tensors:
        return "fp8_scaled (ComfyUI)"
    if any(dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for dtype in matrices):
        return "fp8"
    return f"{str(min(matrices, key=str)).removeprefix('torch.')}" if matrices else ""
