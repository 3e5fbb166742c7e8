"""Checkpoints of training: which stay, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rollforce.errors import TrainingError
from rollforce.training import checkpoint


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"x": torch.ones(1)}, {"a": 1}, "data", keep=2)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-000002", "checkpoint-000003"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and checkpoint.load(newest, {"a": 1}, "data")["step"] == 3


@pytest.mark.parametrize("name", ["recipe.json", "state.pt"])
def test_half_a_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 3, {"x": torch.ones(100)}, {}, "", keep=1)
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(TrainingError, match=rf"{name} is damaged .*--resume FOLDER"):
        checkpoint.load(folder, {}, "")
    (folder / name).unlink()
    with pytest.raises(TrainingError, match=rf"no whole checkpoint: {name} is missing"):
        checkpoint.load(folder, {}, "")


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    checkpoint.save_part(tmp_path, 3, 0, {"x": torch.ones(1)})
    folder = checkpoint.folder_of(tmp_path, 3)
    assert checkpoint.load_part(folder, 0)["x"] == 1
    with pytest.raises(TrainingError):
        checkpoint.load_part(folder, 1)
