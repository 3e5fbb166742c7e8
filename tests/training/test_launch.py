"""Trainings one after the other: what is finished is not done again, what fails is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rollforce.training.launch import train_once

PROGRAM = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--export") + 1])
if "fail" in sys.argv:
    sys.exit(3)
out.mkdir(parents=True)
(out / "model.yaml").write_text(" ".join(sys.argv[1:]))
"""


def test_a_stage_is_trained_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with pytest.raises(subprocess.CalledProcessError):
        train_once(program, tmp_path / "a", "fail")
    final = train_once(program, tmp_path / "a", "run.steps=3")
    told = (final / "model.yaml").read_text()
    assert final == tmp_path / "a" / "final" and told.endswith(" run.steps=3") and "--resume auto" in told
    train_once(program, tmp_path / "a", "fail")  # finished: not run
