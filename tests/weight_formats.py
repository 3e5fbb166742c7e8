"""Tiny Wan weights as other tools write them: ComfyUI's codes, GGUF; and what a network makes of the goldens' ones."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import torch
from public_weights import State
from safetensors.torch import save_file
from torch import Tensor

from rollforce.checkpoints.lazy_tensor import read_all
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer


def matrices(state: State) -> list[str]:
    """The modules that such tools quantise."""
    return [key.removesuffix(".weight") for key, value in state.items() if "block" in key and value.dim() == 2
            and key.endswith(".weight")]  # fmt: skip


def fp8_scaled(state: State) -> State:
    """The old spelling, with the mark of the file."""
    made = dict(state)
    for name in matrices(state):
        weight = state[f"{name}.weight"]
        scale = weight.abs().max() / 448
        made[f"{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
        made |= {f"{name}.scale_weight": scale.reshape(1), f"{name}.scale_input": torch.ones(1)}
    return made | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def comfy_int8(state: State, **settings: object) -> State:
    """The new spelling: int8 with a scale for each row, and what is said of each layer."""
    made = dict(state)
    told = json.dumps({"format": "int8_tensorwise", **settings}).encode()
    for name in matrices(state):
        codes, scale = rows_of_int8(state[f"{name}.weight"])
        made |= {f"{name}.weight": codes, f"{name}.weight_scale": scale,
                 f"{name}.comfy_quant": torch.tensor(list(told), dtype=torch.uint8)}  # fmt: skip
    return made


def rows_of_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127
    return (weight / scale).round().to(torch.int8), scale


def write_gguf(path: Path, state: State, kind: str = "Q8_0", architecture: str = "wan") -> Path:
    """What llama.cpp's tools make: rows of whole blocks as `kind`, all else F32."""
    writer, code = gguf.GGUFWriter(path, architecture), gguf.GGMLQuantizationType[kind]
    block = gguf.GGML_QUANT_SIZES[code][0]
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "longer"])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 40)
    for name, value in state.items():
        numbers = value.float().contiguous().numpy()
        if value.dim() == 2 and value.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quantize(numbers, code), raw_dtype=code)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def spiece_model(pieces: list[str], charsmap: bytes = b"") -> bytes:
    """A SentencePiece model of these pieces, <unk> at place 2, longer ones likelier."""

    def field(number: int, value: bytes) -> bytes:
        size = [len(value)] if len(value) < 128 else [len(value) & 127 | 128, len(value) >> 7]
        return bytes([number << 3 | 2, *size]) + value

    made = b""
    for piece in pieces:
        kind = {"<unk>": 2, "<pad>": 3, "</s>": 3}.get(piece, 1)
        made += field(1, field(1, piece.encode()) + b"\x15" + struct.pack("<f", len(piece) - 9.0) + bytes([0x18, kind]))
    return made + field(2, bytes([0x18, 1, 0xC0, 0x02, 2])) + field(3, field(2, charsmap) if charsmap else b"")


def save(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=metadata)
    return path


def golden_velocity(config: dict[str, Any], state: State, tensors: State) -> Tensor:
    """What our transformer makes of a golden's input with these weights, in float32: [B, C, T, H, W]."""
    known = {field.name for field in fields(TransformerConfig)}
    model = VideoTransformer(TransformerConfig(**{key: value for key, value in config.items() if key in known}))
    model.load_state_dict({key: value.float() for key, value in read_all(state).items()})
    x_BTCHW = tensors["x"].transpose(1, 2)
    sigma_BT = (tensors["t"] / 1000)[:, None].expand(*x_BTCHW.shape[:2])
    with torch.no_grad():
        out = model.eval()(x_BTCHW, sigma_BT, torch.arange(x_BTCHW.shape[1]), model.condition(tensors["emb"]))
    return out.transpose(1, 2)


def golden_tensors(tensors: State, prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
