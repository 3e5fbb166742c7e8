"""The benchmark runs and says what it promises to say; how fast is not a test's business."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT
from small_model import make_model_folder

from rollforce.config import build, resource
from rollforce.engine.budget.model_sizes import ModelSizes, WanDecoding
from rollforce.engine.budget.requirements import MemorySetup, parts
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError, ShapeError
from rollforce.evaluation.speed import floor, report, streaming
from rollforce.evaluation.speed.cases import CASES, Setting, parse_cases, parse_sizes, shrink
from rollforce.evaluation.speed.floor import MatmulCall, flops
from rollforce.evaluation.speed.training import TrainingBench
from rollforce.models.transformer.transformer import WAN_1_3B, WAN_14B, TransformerConfig

BENCH = str(ROOT / "infer" / "bench.py")
CPU = torch.device("cpu")
SMALL = TransformerConfig(num_attention_heads=2, attention_head_dim=16, num_layers=2, ffn_dim=48, text_dim=32)
STREAMING = {"seconds_per_chunk", "denoise_fps", "first_chunk_s", "peak_gb", "shares", "tflop", "of_floor",
             "efficiency"}  # fmt: skip
WAN = ("--model", "wan-1.3b", "--device", "cpu", "--shrink", "30")


def setting(config: TransformerConfig = SMALL, size: tuple[int, int] = (32, 48), **switches: Any) -> Setting:
    return Setting(config, size, torch.float32, CPU, text=12, **switches)


def bench(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["bench.py", "--json", str(out), *arguments])
    runpy.run_path(BENCH, run_name="__main__")
    return json.loads(out.read_text())


# -- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "preset"), [("rolling5", "rolling_forcing"), ("chunk4", "self_forcing"), ("longlive", "longlive")]
)
def test_cases_are_the_presets_of_the_papers(case: str, preset: str) -> None:
    assert CASES[case].stream == build(StreamSettings, resource(f"configs/stream/{preset}.yaml"))


def test_lists_of_cases_and_sizes() -> None:
    assert [case.name for case in parse_cases("all")] == ["rolling5", "chunk4", "longlive", "chunk2"]
    assert [case.name for case in parse_cases("chunk2,forever")] == ["chunk2", "forever"]
    assert parse_sizes("832x480,1280x720") == [(480, 832), (720, 1280)]
    with pytest.raises(ConfigError, match="case 'fast' is not known. Use all, or some of: rolling5"):
        parse_cases("fast")
    with pytest.raises(ShapeError):
        parse_sizes("830x480")


def test_a_shrunk_model_is_smaller_in_everything() -> None:
    config, size = shrink(WAN_1_3B, (480, 832), 6)
    assert (config.num_attention_heads, config.num_layers, config.attention_head_dim, size) == (2, 5, 128, (80, 128))
    assert shrink(WAN_1_3B, (480, 832), 1) == (WAN_1_3B, (480, 832))


# -- the floor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ride", [True, False])
def test_counted_operations_are_those_of_a_real_chunk(case: str, ride: bool) -> None:
    here = setting(ride=ride)
    rollout = streaming.begin_rollout(streaming.random_model(here, CASES[case]), here, CASES[case], ride)
    for _ in range(streaming.chunks_until_steady(rollout)):
        streaming.next_chunk(rollout)
    counted = flops(streaming.record_chunk(rollout))
    assert counted == floor.count_operations(CASES[case], here)
    assert counted == flops(streaming.record_chunk(rollout)), "every chunk takes the same"


@pytest.mark.parametrize(
    ("config", "case", "tera"),
    [(WAN_1_3B, "rolling5", 242), (WAN_1_3B, "chunk4", 202), (WAN_1_3B, "longlive", 141),
     (WAN_14B, "rolling5", 1437), (WAN_14B, "chunk4", 1197), (WAN_14B, "longlive", 928)],
)  # fmt: skip
def test_operations_at_full_size_are_those_of_the_research(config: TransformerConfig, case: str, tera: int) -> None:
    """research/algorithms.md 3.7, computed there by hand: TF per chunk at 832x480."""
    full = Setting(config, (480, 832), torch.bfloat16, CPU)
    assert round(sum(floor.count_operations(CASES[case], full).values()) / 1e12) == pytest.approx(tera, abs=1)


def test_operations_of_one_call() -> None:
    assert MatmulCall("linear", (3, 5, 7)).flops == 2 * 3 * 5 * 7
    assert MatmulCall("attention", (2, 3, 4, 5)).flops == 2 * 2 * (2 * 3 * 4 * 5)  # scores, and their sum of values


def test_the_dry_run_plans_the_memory_of_a_session() -> None:
    full = Setting(WAN_1_3B, (480, 832), torch.bfloat16, CPU)
    sizes = ModelSizes("a", WAN_1_3B, WanDecoding(), 0, 512, "a")
    assert floor.estimate_memory(CASES["chunk4"], full) == parts(
        MemorySetup(sizes, CASES["chunk4"].stream, (480, 832), torch.bfloat16, CPU))  # fmt: skip


# -- the script ------------------------------------------------------------------------------------------------------


def test_the_published_streams_shrunk(monkeypatch, tmp_path, capsys) -> None:
    told = bench(monkeypatch, tmp_path / "b.json", *WAN, "--random-weights", "--case", "rolling5,chunk2", "--chunks",
                 "2", "--decoder", "taehv")  # fmt: skip
    assert [result["case"] for result in told["results"]] == ["rolling5", "chunk2"]
    for result in told["results"]:
        assert result.keys() >= STREAMING | {"decode_seconds_per_chunk", "end_to_end_fps"}
        assert set(result["shares"]) == {"linear", "attention", "rest"} and result["of_floor"] > 0
        assert "target_fps" not in result, "the targets are those of the full size"
    assert told["environment"].keys() >= {"gpu", "driver", "torch", "commit", "settings"}
    lines = capsys.readouterr().out.splitlines()
    assert "torch" in lines[0] and lines[-1].startswith("| wan-1.3b | chunk2 | 16x16 |")


def test_a_dry_run_says_what_would_be_run(monkeypatch, tmp_path, capsys) -> None:
    told = bench(monkeypatch, tmp_path / "b.json", "--model", "wan-1.3b,wan-14b", "--dry-run")
    assert len(told["results"]) == 8
    assert "| wan-1.3b | rolling5 | 832x480 | 70.2 | 172 | 242 |" in capsys.readouterr().out
    first = told["results"][0]
    assert first["target_tflop_per_s"] == pytest.approx(242.4 * 30 / 12, rel=1e-3)
    assert first["bytes"]["transformer"] == 2 * 1_418_996_800


@pytest.mark.parametrize("layout", ["rolling", "chunkwise"])
def test_a_stream_of_any_sizes(monkeypatch, tmp_path, layout) -> None:
    sizes = ["--dim", "32", "--layers", "2", "--heads", "2", "--tokens", "4", "--chunks", "2"]
    told = bench(monkeypatch, tmp_path / "bench.json", *sizes, "--layout", layout, "--apart")
    (result,) = told["results"]
    assert result.keys() >= STREAMING | {"riding_speedup", "riding_speedup_95"}
    assert told["environment"]["settings"]["layout"] == layout


def test_a_model_folder(monkeypatch, tmp_path) -> None:
    folder = make_model_folder(tmp_path / "small")
    (result,) = bench(monkeypatch, tmp_path / "bench.json", "--model", str(folder), "--seconds", "3")["results"]
    assert result["end_to_end_fps"] > 0 and sum(result["shares"].values()) <= 1.01


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("case", ["chunk2", "rolling5"])
def test_a_step_of_distillation_moves_student_and_critic(case: str, checkpointing: bool) -> None:
    step = TrainingBench(CASES[case], setting(size=(16, 16)), latents=15, checkpointing=checkpointing)
    before = {model: [p.clone() for p in model.parameters()] for model in (step.student, step.critic, step.teacher)}

    def moved() -> list[bool]:
        return [any(not torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True))
                for model, old in before.items()]  # fmt: skip

    assert step.generator() >= 0 and moved() == [True, False, False]
    assert step.judge() >= 0 and moved() == [True, True, False]


def test_train_steps_are_told_for_every_length(monkeypatch, tmp_path, capsys) -> None:
    told = bench(monkeypatch, tmp_path / "b.json", *WAN, "--train-step", "--case", "chunk2", "--latents", "3,6",
                 "--chunks", "1")  # fmt: skip
    tried = [(result["latents"], result["checkpointing"]) for result in told["results"]]
    assert tried == [(3, True), (3, False), (6, True), (6, False)]
    assert all(result["generator_s"] > 0 and result["critic_s"] > 0 for result in told["results"])
    assert "| latents | checkpointing | generator s |" in capsys.readouterr().out


def test_it_needs_neither_settings_files_nor_diffusers(tmp_path: Path) -> None:
    """A machine lent for measuring may have torch and little else."""
    absent = ("omegaconf", "diffusers", "transformers", "accelerate", "typer", "rich", "av", "yaml", "psutil",
              "safetensors")  # fmt: skip
    code = (f"import sys, runpy; sys.modules.update(dict.fromkeys({absent!r}))\n"
            "sys.argv = 'bench.py --model wan-1.3b --device cpu --shrink 30 --chunks 1 --case chunk2'.split()\n"
            "for more in ('--dry-run', '--random-weights --decoder taehv', '--train-step --latents 3'):\n"
            "    sys.argv = sys.argv[:11] + more.split()\n"
            f"    runpy.run_path({BENCH!r}, run_name='__main__')")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_table_leaves_out_what_nobody_measured() -> None:
    rows = [{"case": "a", "x": {"y": 0.123456}}, {"case": "b", "x": {"y": 1234.5}}]
    assert report.table(rows, {"case": "case", "y": "x.y", "none": "z"}) == [
        "| case | y |", "|---|---|", "| a | 0.123 |", "| b | 1234 |"]  # fmt: skip


def test_several_streams_beside_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "small")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    told = bench(monkeypatch, tmp_path / "out.json", "--model", str(folder), "--case", "together", "--counts", "2",
                 "--threads", "2", "--chunks", "1", "--warm", "1")  # fmt: skip
    rows = [(row["streams"], row["calls"], row["pulled_by"], row["threads"]) for row in told["results"]]
    assert rows == [(1, "apart", 1, 1), (2, "apart", 1, 1), (2, "together", 1, 1), (2, "together", 1, 2),
                    (2, "apart", 2, 1), (2, "together", 2, 1)]  # fmt: skip
    assert told["results"][0]["times_one"] == told["results"][0]["cpu_of_one"] == 1
    assert all(row["fps"] > 0 and row["denoise_ms"] > 0 and row["decode_ms"] > 0 for row in told["results"])
