"""GGUF files: the header walked here, so that a damaged one cannot ask for memory; codes decoded by the gguf package.

A tensor of any type that the package can decode is read (F32, F16, BF16, Q8_0, Q4_K, IQ4_XS ...), when it is used.
Names are the original ones of Wan, or llama.cpp's of a T5 encoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rollforce.checkpoints.lazy_tensor import LazyTensor
from rollforce.checkpoints.names import Table, first_of, rename
from rollforce.errors import CheckpointError, stand_in

MAGIC = b"GGUF"
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
DIMENSIONS = 8  # of a tensor, at most; GGML knows four, Wan's files have five
HEADER = 100_000_000  # bytes, at most; safetensors has the same limit
SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF's word for the shape of a tensor that it flattened
ENOUGH = {"F32": torch.float32, "F16": torch.float16}  # all others hold less than bfloat16 or as much
UMT5: Table = (
    ("token_embd.weight", "shared.weight"),
    ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
    ("enc.blk.{n}.attn_{qkvo}.weight", "encoder.block.{n}.layer.0.SelfAttention.{qkvo}.weight"),
    ("enc.blk.{n}.attn_rel_b.weight", "encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight"),
    ("enc.blk.{n}.attn_norm.weight", "encoder.block.{n}.layer.0.layer_norm.weight"),
    ("enc.blk.{n}.ffn_gate.weight", "encoder.block.{n}.layer.1.DenseReluDense.wi_0.weight"),
    ("enc.blk.{n}.ffn_up.weight", "encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight"),
    ("enc.blk.{n}.ffn_down.weight", "encoder.block.{n}.layer.1.DenseReluDense.wo.weight"),
    ("enc.blk.{n}.ffn_norm.weight", "encoder.block.{n}.layer.1.layer_norm.weight"),
)


def read_gguf(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file, float32, decoded whenever they are used, and its format in words.

    CheckpointError if it is damaged, or holds a type that the gguf package cannot decode."""
    try:
        data = np.memmap(path, mode="r")
        found = Header(data).tensors()
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(stand_in(path) or f"{path.name} is damaged, not complete, or not GGUF: {error}. Fetch it "
                              "again.") from error  # fmt: skip
    readers = {kind: _reader(kind, path.name) for kind in {each.kind for each in found.values()}}
    state = {name: readers[each.kind](data, each, name) for name, each in found.items()}
    if "token_embd.weight" in state:
        state = rename(state, UMT5, "a UMT5 text encoder", path.name)
    return state, f"GGUF ({', '.join(sorted(_name(kind) for kind in readers))})"


class Stored(NamedTuple):
    """A tensor's type, its shape, the length of its rows in the file, and its first byte."""

    kind: int
    shape: tuple[int, ...]
    row: int
    start: int


class Header:
    """The head of a GGUF file, every step of it checked against the file's end. ValueError says what is wrong."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.at = data, 0
        if self.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := self.number("I")) not in (2, 3):
            raise ValueError(f"version {version} is not 2 or 3 (or its bytes are in the other order)")

    def tensors(self) -> dict[str, Stored]:
        """Return where every tensor lies, by name."""
        tensors, fields = self.number("Q"), self.number("Q")
        told = dict(self.field() for _ in range(fields))
        placed = [self.tensor() for _ in range(tensors)]
        align = told.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1 or align.bit_count() != 1:
            raise ValueError(f"its alignment {align!r} is not a power of 2")
        start = -(-self.at // align) * align
        found = {name: Stored(kind, _shape(told.get(SHAPE + name), shape), (1, *shape)[-1], start + offset)
                 for name, kind, shape, offset in placed}  # fmt: skip
        if len(found) != len(placed):
            raise ValueError("it holds a tensor twice")
        return found

    def field(self) -> tuple[str, Any]:
        return self.text(), self.value(self.number("I"))

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, count = self.text(), self.number("I")
        sizes = [self.number("Q") for _ in range(min(count, DIMENSIONS + 1))]
        if count > DIMENSIONS or 0 in sizes:
            raise ValueError(f"{first_of([name])} has {count} dimensions, {sizes} and so on")
        return name, self.number("I"), tuple(reversed(sizes)), self.number("Q")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return [self.text() for _ in range(count)] if inner == TEXT else self.array(inner, count)
        if kind not in NUMBERS:
            raise ValueError(f"type {kind} of a field is not known")
        return self.number(NUMBERS[kind])

    def array(self, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise ValueError(f"type {kind} in a list is not known")
        held = self.take(count * struct.calcsize("<" + NUMBERS[kind]))  # of long ones, scores of words, nothing is kept
        return list(struct.unpack(f"<{count}{NUMBERS[kind]}", held)) if count <= DIMENSIONS else []

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def number(self, form: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def take(self, count: int) -> bytes:
        if count > min(len(self.data), HEADER) - self.at:
            raise ValueError("its header goes on beyond its end")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()


def _shape(told: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor, or the one that it had before it was flattened."""
    whole = isinstance(told, list) and all(isinstance(size, int) and size > 0 for size in told)
    return tuple(told) if whole and prod(told) == prod(shape) else shape


def _reader(kind: int, file: str) -> Callable[[np.ndarray, Stored, str], Tensor]:
    """What makes lazy tensors of one type. CheckpointError if the package does not know it, or cannot decode it."""
    import gguf

    try:
        known = gguf.GGMLQuantizationType(kind)
        block, size = gguf.GGML_QUANT_SIZES[known]
        gguf.dequantize(np.zeros((1, size), np.uint8), known)
    except (ValueError, LookupError, NotImplementedError) as error:
        raise CheckpointError(f"{file} is GGUF with tensors of the type {_name(kind)}, which the gguf package here "
                              "cannot decode. Take a file in Q8_0, Q4_K or BF16, or pip install -U gguf.") from error

    def lazy(data: np.ndarray, place: Stored, name: str) -> Tensor:
        end = place.start + prod(place.shape) // block * size
        if place.row % block or end > len(data):
            raise CheckpointError(f"{file} is damaged or not complete: {first_of([name])} {list(place.shape)} in "
                                  f"{known.name} does not fit into the file. Fetch it again.")  # fmt: skip
        codes = data[place.start : end].reshape(-1, place.row // block * size)
        return LazyTensor(place.shape, torch.float32, partial(_decode, codes, known, place.shape),
                          ENOUGH.get(known.name, torch.bfloat16))  # fmt: skip

    return lazy


def _name(kind: int) -> str:
    import gguf

    return next((known.name for known in gguf.GGMLQuantizationType if known == kind), f"{kind} (not known)")


def _decode(codes: np.ndarray, kind: Any, shape: tuple[int, ...]) -> Tensor:
    import gguf

    return torch.from_numpy(np.array(gguf.dequantize(np.asarray(codes), kind), np.float32)).reshape(shape)
