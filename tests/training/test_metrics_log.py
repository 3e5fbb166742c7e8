"""What a person reads while a run trains: how far, how long yet, and where it is written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rollforce.training.metrics_log import MetricsLog, format_duration


def test_a_line_says_how_far_it_is_and_how_long_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics = MetricsLog(tmp_path, total=400)
    metrics.begin(100)
    metrics.add(loss=2.0)
    metrics.add(loss=4.0)
    metrics.write(150, rate=0.5)
    metrics.close()
    assert caplog.messages[-1].startswith("step 150 of 400, 0 s left  seconds ") and "loss 3  rate 0.5" in caplog.text
    entry = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {name: entry[name] for name in ("step", "loss", "rate")} == {"step": 150, "loss": 3.0, "rate": 0.5}


def test_times_are_said_as_a_person_says_them() -> None:
    assert [format_duration(seconds) for seconds in (4.4, 600, 12_600)] == ["4 s", "10 min", "3.5 h"]
