"""The benchmark runs and says what it promises to say; how fast is not a test's business."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from small_model import make_model_folder

BENCH = str(Path(__file__).parents[1] / "infer" / "bench.py")
KEYS = {
    "efficiency",
    "seconds_per_chunk",
    "ttff_s",
    "denoise_fps",
    "end_to_end_fps",
    "peak_rss_mb",
    "environment",
    "shares",
}


def bench(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["bench.py", "--json", str(out), *arguments])
    runpy.run_path(BENCH, run_name="__main__")
    return json.loads(out.read_text())


@pytest.mark.parametrize("layout", ["rolling", "chunkwise"])
def test_random_weights(monkeypatch, tmp_path, layout):
    sizes = ["--dim", "32", "--layers", "2", "--heads", "2", "--tokens", "4", "--chunks", "2", "--warmup", "2"]
    report = bench(monkeypatch, tmp_path / "bench.json", *sizes, "--layout", layout, "--apart")
    assert report.keys() >= KEYS | {"riding_speedup"}
    assert report["efficiency"] > 0 and set(report["shares"]) == {"linear", "attention", "rest"}
    assert report["environment"]["settings"]["layout"] == layout


def test_a_model_folder(monkeypatch, tmp_path):
    folder = make_model_folder(tmp_path / "small")
    report = bench(monkeypatch, tmp_path / "bench.json", "--model", str(folder), "--seconds", "3")
    assert report.keys() >= KEYS
    assert report["end_to_end_fps"] > 0 and sum(report["shares"].values()) <= 1.01
