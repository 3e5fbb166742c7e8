"""Snapshots, records, settings, pictures and clips that are damaged: a sentence, or what still decodes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_model import make_model_folder

from rollforce.checkpoints.catalog import preset_file
from rollforce.cli.main import app
from rollforce.cli.record import read_record
from rollforce.config import build
from rollforce.engine.settings import StreamSettings
from rollforce.errors import RollforceError
from rollforce.streaming.load import load
from rollforce.streaming.snapshot import Snapshot
from rollforce.video.images import read_clip, read_picture
from rollforce.video.writer import VideoWriter

SEED, EACH = 29, 60
PROMPT = "a red ball bounces over the green hills"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file of every kind."""
    folder = tmp_path_factory.mktemp("good")
    model = load(make_model_folder(folder / "small", world=True))
    with model.session(PROMPT, seed=1) as session:
        next(session.stream())
        session.snapshot().save(folder / "a.safetensors")
    words = ["render", PROMPT, "-s", "1", "--scale", "1", "--seed", "1", "--model", str(folder / "small"), "-q"]
    with pytest.raises(SystemExit) as ended:
        app([*words, "-o", str(folder / "r.mp4")])
    assert ended.value.code in (0, None)
    (folder / "a.json").write_bytes((folder / "r.json").read_bytes())
    (folder / "a.yaml").write_bytes(preset_file("rolling").read_bytes())
    pictures = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8)
    Image.fromarray(pictures[0]).save(folder / "a.png")
    with VideoWriter(folder / "a.mp4", 12, (48, 64)) as video:
        video.write(pictures)
    return folder


READERS: dict[str, Callable[[Path], Any]] = {
    "a.safetensors": Snapshot.load,
    "a.json": lambda path: asdict(read_record(path).request),
    "a.yaml": lambda path: build(StreamSettings, path),
    "a.png": read_picture,
    "a.mp4": lambda path: list(read_clip(path, 12)),
}


def damage(content: bytes, draw: random.Random) -> bytes:
    """Cut it, change some bytes of it (most in the head, where lengths stand), or leave a hole in it."""
    how, made = draw.randrange(3), bytearray(content)
    if how == 0:
        return content[: draw.randrange(len(content))]
    if how == 1:
        for _ in range(draw.randint(1, 8)):
            made[draw.randrange(min(len(made), 2048) if draw.random() < 0.7 else len(made))] = draw.randrange(256)
        return bytes(made)
    start = draw.randrange(len(content))
    made[start : start + draw.randint(1, 400)] = b""
    return bytes(made)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_told(good: Path, tmp_path: Path, name: str) -> None:
    draw, told = random.Random(f"{SEED} {name}"), 0
    READERS[name](good / name)
    for n in range(EACH):
        path = tmp_path / f"{n}-{name}"
        path.write_bytes(damage((good / name).read_bytes(), draw))
        try:
            READERS[name](path)
        except RollforceError as error:
            told += 1
            assert path.stem in str(error) or path.name in str(error), f"{path.name} is not named: {error}"
            assert "\n" not in str(error).strip() or name in ("a.yaml", "a.json")
    assert told
