"""Programs of train/ and infer/ started one after the other, as those that train a whole family of models do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def train_once(program: Path, out: Path, *settings: str, processes: int = 1) -> Path:
    """Train in `out` with a program of train/, from its newest checkpoint, and export to out/final, which is returned.

    Where that is there already, nothing is done. CalledProcessError if the program fails."""
    final = out / "final"
    if not (final / "model.yaml").is_file():
        run_program(program, "--out", out, "--resume", "auto", "--export", final, *settings, processes=processes)
    return final


def run_program(*arguments: object, processes: int = 1) -> None:
    """Run another program with this Python, in one process or in several that train together.

    CalledProcessError if it fails."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes) if processes > 1 else ()
    subprocess.run([sys.executable, *map(str, (*launch, *arguments))], check=True)
