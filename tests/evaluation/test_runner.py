"""infer/evaluate.py runs on a model folder of random weights and writes the keys it promises; truth gets full marks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import ROOT
from small_model import make_model_folder

from rollforce.config import resource
from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.text.encoder import TextConfig, TextEncoder
from rollforce.world import render, sample_scene, wish_of
from rollforce.world.caption import KINDS
from rollforce.world.eyes import Eyes
from rollforce.world.oracle import score


def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "infer/evaluate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_evaluate_script(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model")
    TextEncoder(TextConfig(KINDS, text_dim=16, text_len=24, layers=1, heads=2)).save(folder / "text")
    done = evaluate("--model", str(folder), "--prompts", "3", "--seconds", "2", "--workers", "2",
                    "--json", str(tmp_path / "a.json"), "--sheet", str(tmp_path / "a.png"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "a.json").read_text())
    for part in (report, report["truth"], report["truth_autoencoder"]):
        for name in ("scene", "colour", "motion", "shape", "count"):
            value = part[name]
            assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
        assert {"chunk", "latent", "inside"} <= set(part["seams"]) and "luma" in part["drift"]
    assert report["truth"]["scene"]["mean"] == report["truth"]["shape"]["mean"] == 1
    assert len(report["prompts"]) == 3 and (tmp_path / "a.png").stat().st_size > 1000


def test_evaluate_answers_a_wrong_model() -> None:
    done = evaluate("--model", "nowhere", "--workers", "1", "--prompts", "1")
    assert done.returncode == 1 and "nowhere" in done.stderr and "Traceback" not in done.stderr


def autoencoder() -> TinyAutoencoder | None:
    try:
        return TinyAutoencoder.load(resource("assets/tiny/autoencoder"))
    except ConfigError:
        return None


@pytest.mark.skipif(autoencoder() is None, reason="the bundled autoencoder is not there yet")
def test_truth_through_the_autoencoder_gets_full_marks() -> None:
    codec, eyes, reports = autoencoder(), Eyes.load(), []
    assert codec is not None
    for seed in range(16):
        scene = sample_scene(10**7 + seed, held_out=True)
        video = render(scene, 11 * seed, 72)
        with torch.no_grad():
            latents = codec.encode(torch.from_numpy(video[None]))
        reports.append(score(codec.decoder().decode(latents), wish_of(scene), eyes=eyes))
    for name in ("scene", "colour", "motion", "shape", "count", "shape_per_frame"):
        assert np.mean([getattr(r, name) for r in reports]) >= 0.98
