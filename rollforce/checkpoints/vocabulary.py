"""A SentencePiece vocabulary (spiece.model), which ComfyUI keeps inside a text encoder's file, as a tokenizer.json.

The steps are those of Hugging Face's tokenizer of UMT5, which Wan's own code uses: the vocabulary's own normaliser,
words that begin with ▁, the likeliest pieces, </s> at the end, and no bytes for a letter that no piece has.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rollforce.checkpoints.safetensors_folder import write_json
from rollforce.errors import CheckpointError

SPACE = "▁"
CONTROL, UNIGRAM = 3, 1
PIECE, TRAINER, NORMALIZER = 1, 2, 3  # fields of sentencepiece_model.proto's ModelProto


def write_tokenizer(content: bytes, folder: Path, name: str) -> None:
    """Write tokenizer.json and tokenizer_config.json from the bytes of a spiece.model. CheckpointError, which calls it
    `name`, if they are damaged or of a model that is no unigram one."""
    try:
        fields = list(_fields(content))
        pieces = [_piece(value) for number, value in fields if number == PIECE]
        trainer = {n: value for number, part in fields if number == TRAINER for n, value in _fields(part)}
        charsmap = [value for number, part in fields if number == NORMALIZER for n, value in _fields(part) if n == 2]
        if not pieces or trainer.get(3, UNIGRAM) != UNIGRAM:
            raise ValueError(f"{len(pieces)} pieces of model type {trainer.get(3, UNIGRAM)}")
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise CheckpointError(f"{name} holds a damaged vocabulary ({error}): put tokenizer/ of `hf download "
                              "google/umt5-xxl` beside it.") from error  # fmt: skip
    write_json(_tokenizer(pieces, int(trainer.get(40, 0)), b"".join(charsmap)), folder / "tokenizer.json")
    words = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 512}
    write_json({"tokenizer_class": "T5TokenizerFast", **words}, folder / "tokenizer_config.json")


def _tokenizer(pieces: list[tuple[str, float, int]], unknown: int, charsmap: bytes) -> dict[str, Any]:
    """Return what the tokenizers library reads."""
    ids = {piece: place for place, (piece, _, _) in enumerate(pieces)}
    if "</s>" not in ids:
        raise CheckpointError("this vocabulary has no </s>: it is not UMT5's.")
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    if charsmap:
        steps.insert(0, {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()})
    marks = [{"id": place, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}
             for place, (piece, _, kind) in enumerate(pieces) if kind == CONTROL or place == unknown]  # fmt: skip
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": marks,
        "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": space, "decoder": space,
        "post_processor": {
            "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [ids["</s>"]], "tokens": ["</s>"]}}},
        "model": {"type": "Unigram", "unk_id": unknown, "byte_fallback": False,
                  "vocab": [[piece, score] for piece, score, _ in pieces]},
    }  # fmt: skip


def _piece(content: bytes) -> tuple[str, float, int]:
    """Text, score and type of a piece."""
    told = dict(_fields(content))
    return told[1].decode(), struct.unpack("<f", told.get(2, bytes(4)))[0], int(told.get(3, 1))


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Walk a message of protobuf: numbers of fields, and a number or bytes each. ValueError if it is cut."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        length, at = _varint(content, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7] if key & 7 in (1, 5) else -1, at)
        if length < 0 or at + length > len(content):
            raise ValueError(f"it is cut at byte {at}")
        yield key >> 3, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError(f"no number ends at byte {at}")
