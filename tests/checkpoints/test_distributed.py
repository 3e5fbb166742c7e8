"""Folders that torch.distributed.checkpoint writes."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from public_weights import MAKERS, State, equal, prefixed, random_state, to_original

from rollforce.checkpoints.read import read_checkpoint
from rollforce.errors import CheckpointError


def save(state: dict[str, Any], folder: Path) -> None:
    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(state, checkpoint_id=folder, no_dist=True)


@pytest.fixture(scope="module")
def ours() -> State:
    """Tiny weights in our names."""
    return random_state(MAKERS["transformer"]())


def test_folders(ours: State, tmp_path: Path) -> None:
    wan = to_original("transformer", ours)
    half = {key: value.bfloat16() for key, value in wan.items()}
    forms = {"bare": wan, "prefixed": prefixed(wan, "model."),
             "app": {"app": {"model": wan, "optim": {"lr": 0.1, "state": {"x": torch.ones(2)}}}},
             "trainer": {"model": half, "ema": wan, "optimizer": {"x": torch.ones(3)}, "step": 3}}  # fmt: skip
    places = {"bare": "", "prefixed": "", "app": "app.model", "trainer": "ema"}
    for name, content in forms.items():
        save(content, tmp_path / name)
        found = read_checkpoint(tmp_path / name)
        assert (found.where, found.format) == (places[name], "a folder of torch.distributed.checkpoint")
        assert equal(found.state, ours), name
    named = read_checkpoint(tmp_path / "trainer", container="model")
    assert named.state["proj_out.weight"].dtype == torch.bfloat16
    next((tmp_path / "bare").glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match="1 of 1 files are missing .*__0_0.distcp"):
        read_checkpoint(tmp_path / "bare")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def test_metadata_that_would_run_code_or_is_damaged(
    ours: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(ours, tmp_path / "good")
    whole = (tmp_path / "good" / ".metadata").read_bytes()
    cases = {pickle.dumps(Evil()): f".metadata names {os.name}.mkdir, which describes no tensor. Refusing",
             whole[:-9]: "is damaged", whole.replace(b"float32", b"flaot32"): "names torch.flaot32",
             b"version https://git-lfs.github.com/spec/v1\n": "Git LFS pointer",
             pickle.dumps({"a": 1}): "is damaged, or is not what"}  # fmt: skip
    for content, words in cases.items():
        (tmp_path / "good" / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / "good")
    assert not Path("owned").exists()


def test_a_damaged_file_is_named_when_its_tensor_is_read(ours: State, tmp_path: Path) -> None:
    save(ours, tmp_path / "run")
    file = next((tmp_path / "run").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    found = read_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="is damaged or not complete: .* cannot be read"):
        for value in found.state.values():
            value.sum()
