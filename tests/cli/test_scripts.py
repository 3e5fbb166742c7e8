"""Evaluation, benchmarks and training as commands."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.cli.scripts import list_scripts

COMMANDS = [("evaluate", "--help"), ("bench", "--help"), *(("train", name, "--help") for name in list_scripts("train"))]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_script_starts(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rollforce"])
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0 and "usage:" in result.output.lower(), result.output


def test_stages_are_listed_and_a_wrong_one_is_named() -> None:
    listed = CliRunner().invoke(app, ["train"]).output
    assert all(f"  {name} " in listed for name in ("teacher", "distill", "encode"))
    result = CliRunner().invoke(app, ["train", "teachr"])
    assert result.exit_code == 2 and "There is no 'teachr' in train" in result.stderr and "teacher" in result.stderr


def test_a_shell_completes_commands_and_presets() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
    asked = {"_ROLLFORCE_COMPLETE": "complete_bash", "COMP_WORDS": "rollforce render --stream roll", "COMP_CWORD": "3"}
    completed = CliRunner().invoke(app, [], env=asked, prog_name="rollforce").stdout
    assert {"rolling", "rolling_forcing"} <= set(completed.split())
