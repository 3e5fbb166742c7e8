"""GGUF files against the numbers of the gguf package, and what is said of those that are damaged or of other types."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from goldens import FORWARD, cases, close, read
from public_weights import MAKERS, State, random_state, to_original
from weight_formats import golden_tensors, golden_velocity, write_gguf

from rollforce.checkpoints.gguf import UMT5, read_gguf
from rollforce.checkpoints.lazy_tensor import storing_dtype
from rollforce.checkpoints.names import rename, to_ours
from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError


@pytest.mark.parametrize("path", cases("gguf_files"))
def test_golden_files(path: Path) -> None:
    spec, tensors = read(path)
    for name, about in spec["files"].items():
        found = read_checkpoint(path.with_name(about["file"]))
        assert found.format == f"GGUF ({', '.join(sorted(set(about['types'].values())))})"
        for key, value in to_ours("transformer", golden_tensors(tensors, f"dequant.{name}.")).items():
            close(found.state[key], value, 0, f"{name}/{key}")
        close(golden_velocity(spec["config"], found.state, tensors), tensors[f"out.{name}"], FORWARD, name)


@pytest.fixture(scope="module")
def wan() -> State:
    """Tiny weights under the original names, with rows of whole blocks."""
    return to_original("transformer", random_state(MAKERS["transformer"](attention_head_dim=16, ffn_dim=64)))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_every_type_that_the_package_writes(kind: str, wan: State, tmp_path: Path) -> None:
    found = read_checkpoint(write_gguf(tmp_path / "wan.gguf", wan, kind))
    assert kind in found.format
    for key, value in to_ours("transformer", wan).items():
        assert found.state[key].shape == value.shape
        assert (found.state[key] - value).abs().max() <= 0.15 * value.abs().max(), key
    assert storing_dtype(found.state["blocks.0.attn1.to_q.weight"]) == {"F16": torch.float16}.get(kind, torch.bfloat16)
    assert storing_dtype(found.state["blocks.0.attn1.to_q.bias"]) == torch.float32


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS", "TQ1_0", "MXFP4"])
def test_every_type_that_the_package_only_reads(kind: str, tmp_path: Path) -> None:
    code = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[code]
    blocks = np.random.default_rng(0).integers(0, 60, (3, 256 // block * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    writer.add_tensor("some.weight", blocks, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state, form = read_gguf(tmp_path / "x.gguf")
    assert form == f"GGUF ({kind})" and state["some.weight"].shape == (3, 256)
    assert torch.equal(state["some.weight"] + 0, torch.from_numpy(np.float32(gguf.dequantize(blocks, code))))


def test_a_text_encoder_under_llama_cpp_s_names(tmp_path: Path) -> None:
    ours = random_state(MAKERS["text"]())
    theirs = rename(ours, tuple((right, left) for left, right in UMT5), "a text encoder")
    found = read_checkpoint(write_gguf(tmp_path / "umt5-xxl.gguf", theirs, "F16", "t5encoder"))
    assert found.kind == "text" and found.state.keys() == ours.keys()
    assert all((found.state[key] - value).abs().max() < 0.01 for key, value in ours.items())


def test_a_tensor_that_was_flattened_has_its_shape_again(wan: State, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    patch = wan["patch_embedding.weight"]
    writer.add_array("comfy.gguf.orig_shape.patch_embedding.weight", list(patch.shape))
    writer.add_tensor("patch_embedding.weight", patch.flatten(0, 3).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert torch.equal(read_gguf(tmp_path / "x.gguf")[0]["patch_embedding.weight"] + 0, patch)


def header(tensors: int = 0, fields: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


@pytest.mark.parametrize(("content", "words"), [
    (b"GGUF\x00\x00\x00\x03" + bytes(40), "version 50331648 is not 2 or 3 .or its bytes are in the other order."),
    (header(2**60), "its header goes on beyond its end"),
    (header(0, 2**60, bytes(64)), "type 0 |beyond its end"),
    (header(0, 1, text("a") + struct.pack("<IIQ", 9, 0, 2**60)), "its header goes on beyond its end"),
    (header(0, 1, text("a") + struct.pack("<IIQ", 9, 9, 3)), "type 9 in a list is not known"),
    (header(1, 0, text("a") + struct.pack("<I", 2**31) + bytes(99)), "a has 2147483648 dimensions"),
    (header(1, 0, text("a") + struct.pack("<IQIQ", 1, 2**40, 0, 0)), r"a \[1099511627776\] in F32 does not fit into"),
    (header(1, 0, text("a") + struct.pack("<IQIQ", 1, 32, 77, 0)), r"tensors of the type 77 \(not known\)"),
    (header(1, 0, text("a") + struct.pack("<IQIQ", 1, 256, 15, 0)), "of the type Q8_K, which the gguf package here"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    (b"<!DOCTYPE html><html>", "web page"),
    (b"", "empty file"),
])  # fmt: skip
def test_what_is_not_read(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "wan.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(tmp_path / "wan.gguf")
