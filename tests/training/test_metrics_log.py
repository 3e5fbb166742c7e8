"""The record of a run."""

from __future__ import annotations

import json
from pathlib import Path

from rollforce.training.metrics_log import MetricsLog


def test_means_are_written(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path / "run")
    metrics.add(loss=1.0)
    metrics.add(loss=3.0)
    metrics.write(5, rate=0.5)
    metrics.close()
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (entry["step"], entry["loss"], entry["rate"]) == (5, 2.0, 0.5)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    MetricsLog(tmp_path / "silent", active=False).write(1)
    assert not (tmp_path / "silent").exists()
