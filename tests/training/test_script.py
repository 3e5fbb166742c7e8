"""Training as a person runs it: the scripts, from their command lines, on a very small model."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from repository import ROOT
from small_model import make_model_folder

import rollforce
from rollforce.config import to_dict
from rollforce.errors import ConfigError, TrainingError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.training import checkpoint
from rollforce.training.metrics_log import Journal, networks_table
from rollforce.training.optim import guard, optimisers, parts_of, set_rate
from rollforce.training.recipes import Optimiser, Run, TeacherRecipe

QUICK = ("run.tell_every=1", "run.save_every=2", "run.show_every=0", "run.parts=2", "run.compile=false")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand weights that knows the words of the world."""
    return make_model_folder(tmp_path_factory.mktemp("model") / "small", world=True)


def command(folder: Path, stage: str, out: Path, *more: str) -> list[str]:
    world = (f"data.autoencoder={folder / 'autoencoder'}", "data.size=16", "data.clips=8", "data.opened=8")
    of_stage = {
        "autoencoder": ("fitted=4", "size=16", "batch=2", "latents=4", "drawn=2"),
        "teacher": (*world, f"start={folder}", "videos=2", "noising.pictures=4", "noising.images_only=0"),
        "causal": (*world, f"teacher={folder}", "videos=2", "latents=6", "solver_steps=4", "pairs=1", "mix=[[1,2,2]]"),
        "distill": (*world, f"teacher={folder}", "batch=4", "alone=1", "ratio=1", "practice.groups=2"),
    }[stage]
    return [str(ROOT / "train" / f"{stage}.py"), "--out", str(out), "--cpu", *QUICK, *of_stage, *more]


def train(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script in this process, as `python` would."""
    AcceleratorState._reset_state(True)  # accelerate remembers the precision of the run before
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(argv[0], run_name="__main__")


def losses(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def state(out: Path) -> dict[str, Any]:
    newest = checkpoint.latest(out)
    assert newest is not None
    return torch.load(newest / "state.pt", weights_only=True)


def equal(one: Any, other: Any) -> bool:
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


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
    told = losses(whole)
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    first = whole / "checkpoint-000002"
    parted.mkdir()
    first.rename(parted / first.name)
    (parted / "latest").write_text(first.name)
    if (whole / "pairs").is_dir():
        (whole / "pairs").rename(parted / "pairs")
    train(command(folder, stage, parted, "run.steps=4", "--resume", "auto", *more), monkeypatch)
    assert losses(parted) == told[2:]  # bit-equal losses and norms
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


def said(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    with pytest.raises(SystemExit) as stopped:
        train(argv, monkeypatch)
    return str(stopped.value)


def test_a_new_run_does_not_write_over_an_old_one(begun: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pass --resume auto to go on" in said(command(folder, "teacher", begun, "run.steps=2"), monkeypatch)


def test_changed_settings_are_refused(begun: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("run.steps=3", "optimiser.lr=0.5", "run.save_every=7", "--resume", "auto")
    told = said(command(folder, "teacher", begun, *more), monkeypatch)
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
        told = said(command(folder, "teacher", begun, "run.steps=2", "--resume", "auto"), monkeypatch)
    finally:
        autoencoder.rename(tmp_path / "gone")
        moved.rename(autoencoder)
    assert "was trained on other data: fingerprint" in told


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000003").mkdir()
    with pytest.raises(TrainingError, match=r"no whole checkpoint: recipe\.json is missing"):
        checkpoint.load(tmp_path / "checkpoint-000003", {}, "")


def test_parts_must_be_shared_out_evenly() -> None:
    assert [list(parts_of(Run(1, parts=4), rank, 2)) for rank in range(2)] == [[0, 2], [1, 3]]
    with pytest.raises(ConfigError, match=r"batch 3 must be a multiple of run\.parts 2"):
        from rollforce.training.recipes import DistillRecipe

        DistillRecipe(Run(1, parts=2), batch=3)


# ---- numbers that are not finite


def test_nan_stops_with_advice_and_the_last_checkpoint_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    told = said(command(folder, "teacher", out, "run.steps=20", "optimiser.lr=1e30", "optimiser.lr_matrices=1e30",
                        "optimiser.warmup=1"), monkeypatch)
    assert "TrainingError" in told and "lower learning rate" in told
    newest = checkpoint.latest(out)
    if newest is not None:
        assert newest.name in told
        saved = state(out)
        assert all(bool(v.isfinite().all()) for v in saved["network"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_guard_names_the_step_and_the_checkpoint(value: float, tmp_path: Path) -> None:
    guard(1.0, "the loss", 3, tmp_path)
    with pytest.raises(TrainingError, match=r"step 7: the loss is (nan|inf)\. No checkpoint was written yet"):
        guard(value, "the loss", 7, tmp_path)
    checkpoint.save(tmp_path, 5, {}, to_dict(TeacherRecipe(Run(9))), "data", keep=1)
    with pytest.raises(TrainingError, match=r"last good checkpoint is .*checkpoint-000005"):
        guard(value, "the loss", 7, tmp_path)


# ---- several processes


def spawn(argv: list[str], processes: int) -> None:
    """Run a script under torchrun."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*launch, *argv], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


Same = Callable[[dict[str, Any], dict[str, Any]], None]


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
    told, twice = losses(tmp_path / "one"), losses(tmp_path / "two")
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


# ---- small parts


def test_rates_rise_and_fall() -> None:
    settings = Optimiser(warmup=10, decay=0.5, floor=0.1)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.5) and 0.1 < rates[99] < 0.12
    assert all(late <= early for early, late in pairwise(rates[50:]))


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = torch.nn.ModuleList([torch.nn.Linear(4, 4)]), torch.nn.Linear(4, 2)

    net = Net()
    adam, muon = optimisers(net, Optimiser("muon", lr=1.0, lr_matrices=2.0))
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert len(adam.param_groups[0]["params"]) == 3
    set_rate([adam, muon], 0.5)
    assert (adam.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (0.5, 1.0)
    assert len(optimisers(net, Optimiser())) == 1


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"x": torch.ones(1)}, {"a": 1}, "data", keep=2)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-000002", "checkpoint-000003"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and checkpoint.load(newest, {"a": 1}, "data")["step"] == 3


def test_the_journal_writes_means(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    journal.note(loss=1.0)
    journal.note(loss=3.0)
    journal.tell(5, rate=0.5)
    journal.close()
    entry = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (entry["step"], entry["loss"], entry["rate"]) == (5, 2.0, 0.5)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    Journal(tmp_path / "silent", active=False).tell(1)
    assert not (tmp_path / "silent").exists()


def test_the_table_of_networks() -> None:
    table = networks_table({"teacher": torch.nn.Linear(500, 1000), "student": torch.nn.Linear(500, 1000)}, ("student",))
    assert "501,000" in table and "2.0 MB" in table and "6.0 MB" in table and "10.0 MB" in table
