"""What torch.save wrote, and what others made of such files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from rollforce.checkpoints.pickles import read_pickle
from rollforce.errors import CheckpointError


def repack(path: Path, to: Path, compression: int) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", compression) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    return to


def test_files_that_were_packed_anew(tmp_path: Path) -> None:
    state = {"weight": torch.arange(1000.0), "bias": torch.randn(3, 5)}
    torch.save(state, tmp_path / "a.pt")
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        read = read_pickle(repack(tmp_path / "a.pt", tmp_path / "b.pt", compression))
        assert all(torch.equal(read[key], value) for key, value in state.items())


def test_a_file_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1_000_000)}, tmp_path / "a.pt")
    bomb = repack(tmp_path / "a.pt", tmp_path / "b.pt", zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="b.pt is damaged.*it would swell to more than weights do"):
        read_pickle(bomb)


def test_a_folder_and_a_file_without_rights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_pickle(tmp_path)
