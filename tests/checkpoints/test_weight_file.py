"""Files of weights that are damaged, cut, flipped or something else: one sentence, no code run, little memory."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import MAKERS, State, equal, random_state, save_sharded, to_original
from weight_formats import comfy_int8, fp8_scaled, save, write_gguf

from rollforce.checkpoints.read import read_checkpoint
from rollforce.checkpoints.weight_file import read_file
from rollforce.errors import CheckpointError

SEED, FILES = 17, 240
ROOM = 150_000  # kilobytes that reading them all may take


@pytest.fixture(scope="module")
def wan() -> State:
    """Tiny weights under the original names."""
    return to_original("transformer", random_state(MAKERS["transformer"](attention_head_dim=16, ffn_dim=64)))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def write_all(folder: Path, state: State) -> list[Path]:
    """A good file of every kind."""
    save(folder / "plain.safetensors", state, {"format": "pt"})
    save(folder / "fp8.safetensors", fp8_scaled(state))
    save(folder / "int8.safetensors", comfy_int8(state, convrot=True, convrot_groupsize=16))
    torch.save({"generator_ema": state}, folder / "zip.pt")
    torch.save({"generator_ema": state}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"generator": Evil()}, folder / "evil.pt")
    write_gguf(folder / "q8_0.gguf", state)
    write_gguf(folder / "q4_0.gguf", state, "Q4_0")
    return sorted(folder.iterdir())


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flip(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, most of them in the head, where lengths and counts stand."""
    made = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(min(len(made), 4096)) if draw.random() < 0.7 else draw.randrange(len(made))
        made[place] = draw.randrange(256)
    return bytes(made)


def stretch(content: bytes, draw: random.Random) -> bytes:
    """A length in the head that asks for far more than there is."""
    place, form = draw.choice([0, 8, 16, 24, 32]), draw.choice(["<Q", ">Q", "<I"])
    number = struct.pack(form, draw.choice([2**31, 2**32 - 1] if form == "<I" else [2**31, 2**40, 2**62]))
    return content[:place] + number + content[place + len(number) :]


def splice(content: bytes, draw: random.Random) -> bytes:
    """A piece from elsewhere in the file, or of nothing, in the place of another."""
    here, there, length = (draw.randrange(len(content)) for _ in range(3))
    piece = content[there : there + length % 300] if draw.random() < 0.5 else bytes(length % 300)
    return content[:here] + piece + content[here + len(piece) :]


def rename(content: bytes, draw: random.Random) -> bytes:
    """Another word in the place of one of the header."""
    words = [b"F32", b"F16", b"BF16", b"shape", b"data_offsets", b"weight", b"blocks.0", b"torch", b"FloatStorage"]
    return content.replace(draw.choice(words), draw.choice([b"I64", b"F8_E8M0", b"", b"\xff\xfe", b"os", b"x" * 40]))


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (cut, flip, stretch, splice, rename)


def test_damaged_files_are_one_sentence(wan: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read, numbers and all, for damage inside the numbers shows nowhere; or a CheckpointError names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    good = [(path.name, path.read_bytes()) for path in write_all(tmp_path / "good", wan)]
    draw, refused, before = random.Random(SEED), 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(FILES):
        name, content = good[number % len(good)]
        path = tmp_path / f"{number}-{name}"
        path.write_bytes(DAMAGES[number // len(good) % len(DAMAGES)](content, draw))
        try:
            for value in read_checkpoint(path).state.values():
                value.float()
        except CheckpointError as error:
            refused += 1
            assert path.name in str(error) and str(error).isprintable() and len(str(error)) < 900, error
        path.unlink()
    assert not Path("owned").exists() and refused > FILES // 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < ROOM


def test_a_file_is_what_its_first_bytes_say(wan: State, tmp_path: Path) -> None:
    torch.save(wan, tmp_path / "a.pt")
    forms = {"a.bin": save(tmp_path / "a.safetensors", wan), "b.ckpt": write_gguf(tmp_path / "a.gguf", wan, "F32"),
             "c": tmp_path / "a.pt"}  # fmt: skip
    for name, path in forms.items():
        content = read_file(path.rename(tmp_path / name)).content
        assert equal({key: value + 0 for key, value in content.items()}, wan)


def test_shards_of_pickles(wan: State, tmp_path: Path) -> None:
    save_sharded(wan, tmp_path, "diffusion_pytorch_model", 3)
    for path in tmp_path.glob("*.safetensors"):
        torch.save(read_file(path).content, path.with_suffix(".bin"))
        path.unlink()
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    told = json.loads(index.read_text().replace(".safetensors", ".bin"))
    (tmp_path / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(told))
    index.unlink()
    assert len(read_checkpoint(tmp_path).state) == len(wan)
    second = tmp_path / "diffusion_pytorch_model-00002-of-00003.bin"
    assert len(read_checkpoint(second).state) == len(wan)
    torch.save([1], second)
    with pytest.raises(CheckpointError, match="00002-of-00003.bin holds no state dict, and it is one of 3 shards"):
        read_checkpoint(tmp_path)
    second.unlink()
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing"):
        read_checkpoint(tmp_path)
