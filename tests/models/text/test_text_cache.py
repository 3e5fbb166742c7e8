"""The cache of text vectors on disk: where it lies, and that no half file is ever read."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from rollforce.models.text.text_cache import CachedText, TextCache, cache_folder


def test_a_failed_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    cache = TextCache(tmp_path)
    monkeypatch.setattr(Path, "replace", full)
    cache.write("key", CachedText(torch.ones(2, 3), 2))
    assert list(tmp_path.iterdir()) == []
    held = cache.read("key")
    assert held is not None and torch.equal(held.rows_LD, torch.ones(2, 3))


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROLLFORCE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "text" and TextCache().folder == tmp_path / "text"
    monkeypatch.delenv("ROLLFORCE_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "rollforce" / "text"


def hammer(folder: str, number: int) -> int:
    """Write and read the same few keys again and again; return how often a read was not whole or not right."""
    cache, wrong = TextCache(folder), 0
    for turn in range(60):
        key = f"key{turn % 3}"
        rows = torch.full((50, 64), float(turn % 3))
        cache.write(key, CachedText(rows, 50))
        known = cache.read(key)
        wrong += known is None or not torch.equal(known.rows_LD, rows)
    return wrong


def test_processes_share_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        assert pool.starmap(hammer, [(str(tmp_path), number) for number in range(3)]) == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"key{i}.safetensors" for i in range(3)]
