"""What the process says about itself is true."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

from rollforce.evaluation import process


def test_memory_counts_what_is_held_and_what_once_was() -> None:
    """In a process of its own, whose peak is not that of the whole test run."""
    script = ("import numpy as np; from json import dumps\n"
              "from rollforce.evaluation.process import peak_mb, resident_mb\n"
              "before = resident_mb(), peak_mb()\n"
              "held = np.ones(20_000_000)\n"
              "during = resident_mb(), peak_mb()\n"
              "del held\n"
              "print(dumps([before, during, (resident_mb(), peak_mb())]))")  # fmt: skip
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    before, during, after = json.loads(told)
    assert 150 < during[0] - before[0] < 180  # 160 MB, touched
    assert 150 < during[1] - before[1] < 180
    assert during[0] - after[0] > 150 and abs(after[1] - during[1]) < 1


def test_the_age_of_a_command_counts_from_its_start() -> None:
    module = "rollforce.evaluation.process"
    script = f"import time; time.sleep(0.5); from {module} import command_age_s; print(command_age_s())"
    begun = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 0.5 <= age <= time.monotonic() - begun + 0.02


def test_digests_and_versions(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert process.file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert {"python", "rollforce", "torch", "av"} <= set(process.versions())
