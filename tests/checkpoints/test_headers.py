"""Headers: names, shapes and packings without a weight; what stands in the place of weights is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from public_weights import prefixed, random_state, save_sharded, to_original, wan_transformer
from safetensors.torch import save_file

from rollforce.checkpoints.headers import packing_of, read_header
from rollforce.errors import CheckpointError


def test_a_header_has_the_shapes_of_the_weights_whatever_the_file(tmp_path: Path) -> None:
    state = random_state(wan_transformer())
    original = to_original("transformer", state)
    save_file(prefixed(original, "model.diffusion_model."), tmp_path / "comfy.safetensors")
    torch.save({"generator_ema": prefixed(original, "model.")}, tmp_path / "student.pt")
    save_sharded(state, tmp_path, "diffusion_pytorch_model", 3)
    for name, where in (("comfy.safetensors", ""), ("student.pt", "generator_ema"),
                        ("diffusion_pytorch_model.safetensors.index.json", "")):  # fmt: skip
        header = read_header(tmp_path / name)
        kind, found = header.ours() or ("", {})
        assert kind == "transformer" and header.where == where and header.quantised == ""
        assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in state.items()}
        assert all(value.is_meta for value in found.values())


@pytest.mark.parametrize(("names", "word"), [
    (["a.weight", "a.scale_weight"], "fp8_scaled"), (["a.weight", "a.comfy_quant"], "comfy_quant"),
    (["a.weight", "a.absmax", "a.quant_map"], "bitsandbytes"), (["a.qweight", "a.qzeros"], "GPTQ"),
    (["a.weight._data", "a.weight._scale"], "quanto"), (["a.weight"], ""),
])  # fmt: skip
def test_packings_have_names(names: list[str], word: str) -> None:
    assert word in packing_of({name: torch.zeros(2, 2) for name in names})


def test_plain_float8_and_integers() -> None:
    assert packing_of({"a": torch.zeros(2, 2, dtype=torch.float8_e5m2)}) == "fp8"
    assert packing_of({"a": torch.zeros(2, 2, dtype=torch.int8)}) == "int8"


@pytest.mark.parametrize(("content", "words"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "Git LFS pointer"),
    (b"<!DOCTYPE html><html>", "web page"), (b"", "empty"),
    (b"\x01\x02nothing at all", "damaged, not complete, or not|weights are read from"),
    (b"GGUF\x03\x00\x00\x00cut", "GGUF"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", ["safetensors", "gguf", ""])
def test_what_is_no_weights_is_named(content: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    (path := tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(99)}, path := tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged, not complete"):
        read_header(path)
