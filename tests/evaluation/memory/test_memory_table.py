"""The table of memory policies: what it takes from presets, and from results."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from rollforce.checkpoints.catalog import presets
from rollforce.config import build, resource
from rollforce.engine.settings import StreamSettings

SCRIPT = ROOT / "infer" / "memory_table.py"
TABLE: dict[str, Any] = runpy.run_path(str(SCRIPT))


def test_a_preset_tells_its_method_paper_and_files() -> None:
    cells = TABLE["row"]("reward_forcing", {})
    assert cells[:3] == ["`reward_forcing`", "Reward Forcing", "[2512.04678](https://arxiv.org/abs/2512.04678)"]
    assert cells[3] == "`window.py`, `ema_sink.py`" and int(cells[4]) > 10
    assert cells[7:] == ["not measured", "", "not measured"]
    assert TABLE["row"]("longlive", {})[7] == "1"  # sink and window: what all others stand beside


def test_bytes_by_hand() -> None:
    """One chunk of 3 latents as window, 12 in flight; read once by the tick and once by the clean pass."""
    latent = 2 * 16 * 192 * 6 * 4  # keys and values, tokens, width, layers, float32
    rolling = build(StreamSettings, resource("configs/stream/rolling.yaml"))
    assert TABLE["bytes_of"](rolling) == (15 * latent, 6 * latent)


def test_results_are_filled_in(tmp_path: Path) -> None:
    scores = dict.fromkeys(("scene", "colour", "motion", "count"), 1.0)
    rows = [{"number": n, "first_10s": scores | {"shape": 1.0}, "last_10s": scores | {"shape": shape}}
            for n, shape in enumerate((1.0, 0.5))]
    report = tmp_path / "r.json"
    report.write_text(json.dumps({"settings": {"seconds": 600, "prompts": 2}, "runs": {"longlive": {"prompts": rows}}}))
    cost = {"case": "longlive", "against": "plain", "ratio": 1.017, "ratio_low": 1, "ratio_high": 1.04}
    results = {"cost": {"results": [cost]}, "quality": TABLE["score_report"](report)}
    cells = TABLE["row"]("longlive", results)
    assert cells[7:] == ["1.02 [1.00, 1.04]", "", "0.95 [0.90, 1.00], -0.05"]
    assert results["quality"]["longlive"]["seconds"] == 600
    tuned = {"tuned": {"self_forcing": results["quality"]["longlive"]}}  # the same stream: not measured twice
    assert TABLE["row"]("causal_forcing", tuned)[9:] == ["tuned: 0.95 [0.90, 1.00], -0.05"]
    assert TABLE["row"]("longlive", tuned)[9:] == ["not measured"]
    alone = {"settings": {"seconds": 600, "prompts": 2}, "run": {"stream": "longlive"}, "prompts": rows}
    report.write_text(json.dumps(alone))
    assert TABLE["score_report"](report) == results["quality"]
    report.write_text(json.dumps({"settings": {}, "runs": {"longlivee": {}}}))
    with pytest.raises(SystemExit, match="names of presets, not longlivee"):
        TABLE["score_report"](report)


def test_from_a_stream_to_its_row(tmp_path: Path) -> None:
    """train/memory.py judges, infer/memory_table.py tells."""
    judge, out, results = ROOT / "train" / "memory.py", tmp_path / "new" / "folder", tmp_path / "results.json"
    program(judge, "--out", out, "--evaluate", "plain", "--only", "rolling", "--prompts", 1, "--seconds", 20,
            "--processes", 1)  # fmt: skip
    told = program(SCRIPT, "--results", results, "--quality", out / "plain.json")
    assert json.loads(results.read_text())["quality"]["rolling"]["seconds"] == 20
    assert re.search(r"\| `rolling` .* [01]\.\d\d \[.*\], [+-]0\.\d\d \|", told)


def program(path: Path, *options: object) -> str:
    return subprocess.run([sys.executable, path, *map(str, options)], check=True, capture_output=True, text=True).stdout


def test_every_preset_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in presets():
        method, _ = TABLE["describe_preset"](resource(f"configs/stream/{name}.yaml").read_text())
        assert 3 < len(method) < 40, f"{name} should begin with what it is called: {method}"
