"""Training as a person runs it: the scripts, from their command lines, on a very small model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT
from small_model import make_model_folder
from train_scripts import command, equal, error_of, logged, spawn, state, train

import rollforce
from rollforce.cache.policies import Window
from rollforce.engine.settings import LayoutSettings
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.training import checkpoint
from rollforce.training.data import write_latents
from rollforce.training.run import MetricsLog, train_once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand weights that knows the words of the world."""
    return make_model_folder(tmp_path_factory.mktemp("model") / "small", world=True)


STAGES = ("autoencoder", "teacher", "causal", "distill")
VARIANTS = {
    "distill lessons": ("distill", "practice={kind: lessons, latents: [6, 9], last: 6, mix: 0.5, first: image}"),
    "distill leaking": ("distill", "practice={kind: lessons, latents: [6], last: 6, leak: true}", "stream=chunkwise"),
    "distill forced": ("distill", "practice={kind: forced, latents: 6}"),
    "distill forced, true past": ("distill", "practice={kind: forced, latents: 6, past: clean}"),
    "distill sid": ("distill", "loss=sid"),
    "distill re_dmd": ("distill", "rewards={kind: re_dmd, reward: eyes}"),
    "distill stream_r1": ("distill", "rewards={kind: stream_r1, reward: eyes}"),
    "distill long tuning": ("distill", "practice={kind: lasting, groups: 2, age: 3, switch: 0.5}"),
    "distill a tier with weights": ("distill", "stream=hybrid_forcing"),
    "causal teacher_forcing": ("causal", "method=teacher_forcing", "aug=0.1"),
    "causal ode": ("causal", "method=ode"),
    "causal ode, bidirectional": ("causal", "method=ode", "history=false"),
    "causal consistency": ("causal", "method=consistency"),
    "causal partitions": ("causal", "method=partitions"),
    "causal segments": ("causal", "method=segments"),
    "recomputed": ("distill", "run.recompute=true"),
    "bf16": ("distill", "run.precision=bf16"),
}


@pytest.mark.parametrize("case", [*STAGES, *VARIANTS])
def test_a_resumed_run_equals_one_that_never_stopped(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, *more = VARIANTS.get(case, (case,))
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(command(folder, stage, whole, "run.steps=4", *more), monkeypatch)
    told = logged(whole)
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    first = whole / "checkpoint-000002"
    parted.mkdir()
    first.rename(parted / first.name)
    (parted / "latest").write_text(first.name)
    if (whole / "pairs").is_dir():
        (whole / "pairs").rename(parted / "pairs")
    train(command(folder, stage, parted, "run.steps=4", "--resume", "auto", *more), monkeypatch)
    assert logged(parted) == told[2:]  # bit-equal losses and norms
    assert equal(state(parted), state(whole))


@pytest.mark.parametrize("case", [*STAGES, "distill a tier with weights"])
def test_what_is_exported_can_be_loaded(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, *more = VARIANTS.get(case, (case,))
    final = tmp_path / "final"
    train(command(folder, stage, tmp_path / "out", "run.steps=2", "--export", str(final), *more), monkeypatch)
    if stage == "autoencoder":
        TinyAutoencoder.load(final)
        return
    model = rollforce.load(str(final), stream="rolling")
    assert ("linear_memory" in model.transformer.policy) == bool(more)
    with model.session("a red ball rolls left", seed=1) as session:
        assert next(session.stream()).frames.shape == (12, 16, 16, 3)


def export_of(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, *more: str) -> Path:
    final = tmp_path / "final"
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    train(command(folder, stage, out, "run.steps=1", "--export", str(final), *more), monkeypatch)
    return final


def test_an_exported_student_streams_as_it_was_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = "changes=['layout.levels=[1, 0.5]', 'cache=[{kind: window, latents: 6}]']"
    final = export_of(folder, tmp_path, monkeypatch, "distill", "stream=chunkwise", changes)
    settings = rollforce.load(final).stream_settings
    assert (settings.layout.kind, settings.layout.levels) == ("chunkwise", (1, 0.5))
    assert settings.cache == (Window(6),)
    assert rollforce.load(final, overrides=["layout.chunk=1"]).stream_settings.layout.levels == (1, 0.5)
    asked = rollforce.load(final, stream="chunkwise").stream_settings  # a preset that is asked for is as it is
    assert len(asked.layout.levels) == 4
    export_of(folder, tmp_path, monkeypatch, "distill")  # into the same folder
    assert rollforce.load(final).stream_settings.layout.kind == "rolling"


@pytest.mark.parametrize(("method", "layout"), [
    ("diffusion_forcing", LayoutSettings("chunkwise", 2, (1.0, 0.5), 5.0)),
    ("partitions", LayoutSettings("partitioned", 1, (1.0, 0.75, 0.5, 0.25), 5.0, micro=2)),
    ("segments", LayoutSettings("partitioned", 1, (1.0, 0.5), 5.0)),
])
def test_a_causal_student_streams_in_the_layout_it_was_trained_in(
    method: str, layout: LayoutSettings, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (f"method={method}", "chunk=2", "levels=[1, 0.5]", "shift=5")
    final = export_of(folder, tmp_path, monkeypatch, "causal", *more)
    assert rollforce.load(final).stream_settings.layout == layout


def test_a_student_put_together_with_another_autoencoder_keeps_its_stream(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = export_of(folder, tmp_path, monkeypatch, "distill", "changes=['layout.levels=[1, 0.5]']")
    whole = tmp_path / "whole"
    argv = [str(ROOT / "train" / "export.py"), "--student", str(student), "--autoencoder", str(folder / "autoencoder"),
            "--out", str(whole), "--size", "16"]
    train(argv, monkeypatch)
    assert rollforce.load(whole).stream_settings.layout.levels == (1, 0.5)


def test_all_stages_follow_each_other(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    smoke = [sys.executable, str(ROOT / "train" / "tiny.py"), "--out", str(tmp_path), "--smoke"]
    done = subprocess.run(smoke, env=environment, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "ball.mp4").stat().st_size > 1000


# ---- refusals


@pytest.fixture(scope="module")
def begun(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun") / "out"
    with pytest.MonkeyPatch.context() as patch:
        train(command(folder, "teacher", out, "run.steps=2"), patch)
    return out


def test_a_new_run_does_not_write_over_an_old_one(begun: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pass --resume auto to go on" in error_of(command(folder, "teacher", begun, "run.steps=2"), monkeypatch)


def test_changed_settings_are_refused(begun: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("run.steps=3", "optimiser.lr=0.5", "run.save_every=7", "--resume", "auto")
    told = error_of(command(folder, "teacher", begun, *more), monkeypatch)
    assert "optimiser.lr: 0.002 -> 0.5" in told and "run.steps: 2 -> 3" in told
    assert "save_every" not in told  # may change: it does not touch the numbers


def test_other_data_is_refused(
    begun: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_model_folder(tmp_path / "other", world=True, seed=5)
    moved = folder.with_name("moved")
    autoencoder = folder / "autoencoder"
    try:
        autoencoder.rename(moved)
        (other / "autoencoder").rename(autoencoder)  # another encoder under the same name
        told = error_of(command(folder, "teacher", begun, "run.steps=2", "--resume", "auto"), monkeypatch)
    finally:
        autoencoder.rename(tmp_path / "gone")
        moved.rename(autoencoder)
    assert "was trained on other data: fingerprint" in told


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Settings of a folder of encoded clips, as the networks of `folder` read them."""
    written = tmp_path_factory.mktemp("clips")
    write_latents(written, [(torch.randn(6, 8, 2, 2), torch.randn(24, 16), "a red ball")])
    return f"data={{kind: latents, folder: {written}}}"


@pytest.mark.parametrize(("stage", "setting", "said"), [
    ("distill", "rewards.kind=re_dmd", "rewards.kind re_dmd judges pictures of the tiny world"),
    ("distill", "run.show_every=1", "samples are shown of"), ("teacher", "run.show_every=1", "samples are shown of"),
])
def test_what_needs_the_world_is_refused_for_encoded_clips(
    stage: str, setting: str, said: str, clips: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [word for word in command(folder, stage, tmp_path, "run.steps=1") if not word.startswith("data.")]
    assert said in error_of([*argv, clips, setting], monkeypatch)


def test_captions_without_a_text_encoder_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    shutil.rmtree(silent / "text")
    more = (f"start={silent}", "run.steps=1")
    assert "the data brings prompts" in error_of(command(folder, "teacher", tmp_path, *more), monkeypatch)


def test_a_checkpoint_of_another_network_is_refused(
    begun: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = checkpoint.latest(begun)
    assert newest is not None
    kept = (newest / "state.pt").read_bytes()
    try:
        changed = state(begun)
        changed["network"] = dict(list(changed["network"].items())[1:])
        torch.save(changed, newest / "state.pt")
        text = error_of(command(folder, "teacher", begun, "run.steps=2", "--resume", "auto"), monkeypatch)
    finally:
        (newest / "state.pt").write_bytes(kept)
    assert text.startswith("the checkpoint's network does not fit")


def test_muon_on_sharded_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    argv = command(folder, "teacher", tmp_path / "out", "run.steps=1", "run.shard=true", "optimiser.kind=muon")
    with pytest.raises(AssertionError, match=r"Muon takes whole matrices"):
        spawn(argv, 1)


# ---- numbers that are not finite


def test_nan_stops_with_advice_and_the_last_checkpoint_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    told = error_of(command(folder, "teacher", out, "run.steps=20", "optimiser.lr=1e30", "optimiser.lr_matrices=1e30",
                        "optimiser.warmup=1"), monkeypatch)
    assert "lower learning rate" in told
    newest = checkpoint.latest(out)
    if newest is not None:
        assert newest.name in told
        saved = state(out)
        assert all(bool(v.isfinite().all()) for v in saved["network"].values())


# ---- several processes


def close(one: dict[str, Any], other: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        for key, value in one[name].items():
            torch.testing.assert_close(value, other[name][key], rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(("stage", "names", "how"), [
    ("teacher", ("network",), "plain"), ("distill", ("student", "critic"), "sharded"),
    pytest.param("teacher", ("network",), "sharded", marks=pytest.mark.slow),
    pytest.param("distill", ("student", "critic"), "plain", marks=pytest.mark.slow),
])
def test_two_processes_train_what_one_trains(
    stage: str, names: tuple[str, ...], how: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # AdamW divides by the size of the gradient, so equal steps need equal gradients; SGD-like would hide a factor of 2
    more = ("run.steps=2", "optimiser.kind=adamw") if stage == "teacher" else ("run.steps=2",)
    train(command(folder, stage, tmp_path / "one", *more), monkeypatch)
    shard = ("run.shard=true",) if how == "sharded" else ()
    spawn(command(folder, stage, tmp_path / "two", *more, *shard), 2)
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    close(one, two, names)
    told, twice = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert [line["norm"] for line in twice if "norm" in line] == pytest.approx(
        [line["norm"] for line in told if "norm" in line], rel=1e-3)


def test_another_number_of_processes_may_go_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    train(command(folder, "distill", whole, "run.steps=4"), monkeypatch)
    first = whole / "checkpoint-000002"
    out.mkdir()
    first.rename(out / first.name)
    (out / "latest").write_text(first.name)
    spawn(command(folder, "distill", out, "run.steps=4", "--resume", "auto"), 2)
    close(state(whole), state(out), ("student", "critic", "average"))


PROGRAM = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--export") + 1])
if "fail" in sys.argv:
    sys.exit(3)
out.mkdir(parents=True)
(out / "model.yaml").write_text(" ".join(sys.argv[1:]))
"""


def test_a_stage_is_trained_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with pytest.raises(subprocess.CalledProcessError):
        train_once(program, tmp_path / "a", "fail")
    final = train_once(program, tmp_path / "a", "run.steps=3")
    told = (final / "model.yaml").read_text()
    assert final == tmp_path / "a" / "final" and told.endswith(" run.steps=3") and "--resume auto" in told
    train_once(program, tmp_path / "a", "fail")  # finished: not run


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
