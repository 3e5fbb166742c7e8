"""What the process says about itself is true."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from rollforce.evaluation import process


def test_memory_counts_what_is_held() -> None:
    before = process.resident_mb()
    held = np.ones(20_000_000)  # 160 MB, touched
    assert 100 < process.resident_mb() - before < 300
    assert process.peak_mb() >= 160
    del held


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
