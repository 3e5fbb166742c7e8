"""A SentencePiece vocabulary becomes the tokenizer that transformers reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from weight_formats import spiece_model

from rollforce.checkpoints.vocabulary import write_tokenizer
from rollforce.errors import CheckpointError

PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁ball", "b", "l", "▁b", "al", "x"]


def test_the_likeliest_pieces_and_an_end(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer(spiece_model(PIECES), tmp_path, "umt5.safetensors")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer("a red  ball")["input_ids"] == [4, 5, 6, 1]
    assert tokenizer("bx")["input_ids"] == [9, 11, 1]
    assert tokenizer("é", padding="max_length", max_length=5)["input_ids"] == [3, 2, 1, 0, 0]
    assert tokenizer.decode([4, 5, 6, 1], skip_special_tokens=True) == "a red ball"
    assert tokenizer("a </s>")["input_ids"][-2:] == [1, 1]


def test_what_is_not_a_vocabulary(tmp_path: Path) -> None:
    good = spiece_model(PIECES)
    for content in (good[:-3], b"\xff" * 30, b"", good + b"\x12\x02\x18\x02", b"\x0a\x02\x15\x00"):
        with pytest.raises(CheckpointError, match="umt5.safetensors holds a damaged vocabulary .*hf download"):
            write_tokenizer(content, tmp_path, "umt5.safetensors")
    with pytest.raises(CheckpointError, match="no </s>"):
        write_tokenizer(spiece_model(["<unk>", "a"]), tmp_path, "x")
    assert not (tmp_path / "tokenizer.json").exists()


def test_its_own_normaliser_is_kept(tmp_path: Path) -> None:
    write_tokenizer(spiece_model(PIECES, charsmap=struct.pack("<I", 4) + b"abcd"), tmp_path, "x")
    steps = json.loads((tmp_path / "tokenizer.json").read_text())["normalizer"]["normalizers"]
    assert [step["type"] for step in steps] == ["Precompiled", "Replace"]
