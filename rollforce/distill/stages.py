"""Trainings one after the other, each a program of its own: what is finished stays, what was stopped goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def trained(program: Path, out: Path, *settings: str, processes: int = 1) -> Path:
    """Train in `out` with a program of train/, from its newest checkpoint, and export to out/final, which is returned.
    Where that is there already, nothing is done. CalledProcessError if the program fails."""
    final = out / "final"
    if not (final / "model.yaml").is_file():
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes) if processes > 1 else ()
        python(*launch, program, "--out", out, "--resume", "auto", "--export", final, *settings)
    return final


def python(*arguments: object) -> None:
    """Run another program with this Python."""
    subprocess.run([sys.executable, *map(str, arguments)], check=True)
