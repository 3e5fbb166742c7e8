"""The command `identify`: for people, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from public_weights import SIZES, prefixed, random_state, to_original, wan_transformer
from typer.testing import CliRunner

from rollforce.cli.main import app


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["identify", *words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_a_bundled_model() -> None:
    said = run("tiny")
    for words in ("a model folder, whole", "causal   yes (model.yaml", "licence  Apache-2.0 (", "stream   rolling (",
                  "yes. Needs ~", 'go on with: rollforce render "a red ball bounces over green hills" --model tiny'):
        assert words in said
    told = json.loads(run("tiny", "--json"))
    assert told["streams"] and told["fits"] and told["memory"]["needs"] > 0 and told["kind"] == "model"


def test_a_student_and_a_teacher_are_told_apart_with_the_reason(tmp_path: Path) -> None:
    state = to_original("transformer", random_state(wan_transformer(**{**SIZES, "attention_head_dim": 128})))
    for name in ("longlive_base.pt", "wan2.1_t2v_1.3B.pt", "mine.pt"):
        torch.save({"model": prefixed(state, "model.")}, tmp_path / name)
    student = run(str(tmp_path / "longlive_base.pt"))
    assert "causal   yes (LongLive, by its name longlive_base.pt)" in student
    assert "once converted, yes. Needs" in student
    assert "no: it is a bidirectional model" in run(str(tmp_path / "wan2.1_t2v_1.3B.pt"))
    unknown = run(str(tmp_path / "mine.pt"))
    assert "causal   not known: nothing in it tells" in unknown and "if it is a causal student, yes." in unknown
    assert "licence  not known" in unknown


def test_heads_that_are_not_known_are_not_guessed(tmp_path: Path) -> None:
    torch.save(to_original("transformer", random_state(wan_transformer())), tmp_path / "odd.pt")
    assert "not known: how many heads it has" in run(str(tmp_path / "odd.pt"))


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    assert "There is no file or folder" in run(str(tmp_path / "none"), code=2)
