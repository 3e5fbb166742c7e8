"""The scripts of train/ as a person runs them: their command lines for a very small model, and what they leave."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from repository import ROOT

from rollforce.training import checkpoint

QUICK = ("run.tell_every=1", "run.save_every=2", "run.show_every=0", "run.parts=2", "run.compile=false")


def command(folder: Path, stage: str, out: Path, *more: str) -> list[str]:
    world = (f"data.autoencoder={folder / 'autoencoder'}", "data.size=16", "data.clips=8", "data.opened=8")
    of_stage = {
        "autoencoder": ("fitted=4", "size=16", "batch=2", "latents=4", "drawn=2"),
        "teacher": (*world, f"start={folder}", "videos=2", "noising.pictures=4", "noising.images_only=0"),
        "causal": (*world, f"teacher={folder}", "videos=2", "latents=6", "solver_steps=4", "pairs=1", "mix=[[1,2,2]]"),
        "distill": (*world, f"teacher={folder}", "batch=4", "alone=1", "ratio=1", "practice.groups=2"),
    }[stage]
    return [str(ROOT / "train" / f"{stage}.py"), "--out", str(out), "--cpu", *QUICK, *of_stage, *more]


def train(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script in this process, as `python` would."""
    AcceleratorState._reset_state(True)  # accelerate remembers the precision of the run before
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(argv[0], run_name="__main__")


def logged(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def state(out: Path) -> dict[str, Any]:
    newest = checkpoint.latest(out)
    assert newest is not None
    return torch.load(newest / "state.pt", weights_only=True)


def equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def error_of(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a script says as it refuses."""
    with pytest.raises(SystemExit) as stopped:
        train(argv, monkeypatch)
    return str(stopped.value)


def spawn(argv: list[str], processes: int) -> None:
    """Run a script under torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launch, *argv], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
