"""What the README shows can be done: its Python runs, its commands exist, its files are there."""

from __future__ import annotations

import re
import shlex

import pytest
from repository import ROOT
from typer.testing import CliRunner

from rollforce.cli.main import app
from rollforce.config import resource

TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def has_weights() -> bool:
    return any(resource("assets/tiny").rglob("*.safetensors"))


@pytest.mark.skipif(not has_weights(), reason="the bundled model is not trained yet")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert "64, 64, 3)" in capsys.readouterr().out


def commands(program: str) -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each[:1] == [program]]


@pytest.mark.parametrize("words", commands("rollforce"), ids=" ".join)
def test_commands_and_options_exist(words: list[str]) -> None:
    help_text = CliRunner().invoke(app, [words[0], "--help"], env={"COLUMNS": "200"})
    assert help_text.exit_code == 0
    for option in (word for word in words[1:] if word.startswith("-")):
        assert re.search(rf"(^|\s){option}\s", help_text.output), f"{words[0]} has no {option}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [words[0] for words in commands("make")]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_named_files_exist() -> None:
    named = re.findall(r"(?:assets|infer|train|configs|tests|rollforce)/[\w./-]*\w", TEXT)
    missing = [name for name in named if not (ROOT / name).exists() and (has_weights() or "assets/tiny" not in name)]
    assert not missing
