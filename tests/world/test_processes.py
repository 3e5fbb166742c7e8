"""Processes that share work end with the one that began them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

POOL = """
import os, time
from rollforce.world.processes import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""
RENDERERS = """
import os, time
from rollforce.world.processes import Renderers

def work(number):
    time.sleep(60 if number else 0)
    return os.getpid()

if __name__ == "__main__":
    renderers = Renderers(work, 1)
    renderers.reach(3)
    print(renderers.take(0), flush=True)
    if {waits}:
        renderers.take(1)
"""


@pytest.mark.parametrize("text", [POOL, RENDERERS.format(waits=True)], ids=["pool", "renderers"])
def test_who_works_for_a_killed_process_ends(tmp_path: Path, text: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(text)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as begun:
        assert begun.stdout is not None
        worker = psutil.Process(int(begun.stdout.readline()))
        assert worker.is_running()
        begun.kill()
    worker.wait(timeout=10)  # psutil.TimeoutExpired: it works on


def test_what_was_ordered_and_not_taken_is_dropped_at_the_end(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(RENDERERS.format(waits=False))
    begun = time.monotonic()
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun < 45
