"""Processes that were launched together share a prompt file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rollforce.cli.jobs import plan, write_manifest
from rollforce.cli.launch import Launch, read_launch
from rollforce.cli.options import RenderOptions
from rollforce.errors import ConfigError


def launched(monkeypatch: pytest.MonkeyPatch, rank: object, size: object) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


def test_every_prompt_has_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("".join(f"prompt {number}\n" for number in range(7)))
    options, taken = RenderOptions(prompts="p.txt", out=Path("made")), []
    for rank in (2, 0, 1):
        launched(monkeypatch, rank, 3)
        planned = plan(options)
        taken += [task.path.name for task in planned.mine]
        write_manifest(planned, {planned.mine[0].path: "done", planned.mine[1].path: "interrupted"})
        for task in planned.mine:  # what another process made is not in this one's way
            task.path.write_bytes(b"x")
    assert sorted(taken) == [f"{number:04d}-prompt-{number}-seed0.mp4" for number in range(7)]
    listed = [json.loads(line)["status"] for line in Path("made/manifest.jsonl").read_text().splitlines()]
    assert listed == [*["done"] * 3, *["interrupted"] * 3, "waiting"]


def test_one_prompt_is_made_by_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    launched(monkeypatch, 1, 2)
    assert plan(RenderOptions(words=["a"])).mine == ()


def test_what_launchers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert read_launch() == Launch(0, 1, 0) and read_launch().device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "1")
    launched(monkeypatch, 5, 8)
    assert read_launch() == Launch(5, 8, 1)
    for rank, size in ((2, 2), (-1, 2), ("one", 2)):
        launched(monkeypatch, rank, size)
        with pytest.raises(ConfigError, match="RANK=.* must be whole numbers, the first below the second"):
            read_launch()
