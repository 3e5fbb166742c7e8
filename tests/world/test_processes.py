"""Processes that share work end with the one that began them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

PROGRAM = """
import os, time
from rollforce.world.processes import workers

if __name__ == "__main__":
    with workers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""


def test_who_works_for_a_killed_process_ends(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as begun:
        assert begun.stdout is not None
        worker = psutil.Process(int(begun.stdout.readline()))
        assert worker.is_running()
        begun.kill()
    worker.wait(timeout=10)  # psutil.TimeoutExpired: it works on
