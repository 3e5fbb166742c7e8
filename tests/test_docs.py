"""What the documents show can be done: Python runs, commands and options exist, links, anchors and files are there."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partialmethod
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from repository import ROOT

import rollforce
from rollforce.cache.policies import AnyTier
from rollforce.checkpoints.catalog import preset_file, presets
from rollforce.cli.main import app
from rollforce.cli.prompt_files import read_jobs
from rollforce.config import build, resource
from rollforce.engine.settings import StreamSettings
from rollforce.engine.transitions import NAMES
from rollforce.training.recipes import AutoencoderRecipe, CausalRecipe, DistillRecipe, TeacherRecipe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "train" / "LOG.md", *sorted((ROOT / "assets").glob("*/README.md"))]
NEEDS = "# Needs "  # how a block begins that cannot run everywhere
PLANNED = {"rollforce/controls", "rollforce/serving"}  # rooms to come, of which the documents speak
RECIPES = {"teacher": TeacherRecipe, "causal": CausalRecipe, "distill": DistillRecipe, "autoencoder": AutoencoderRecipe}
PROGRAMS = ("rollforce", "make", "python", "torchrun", "pip")


@dataclass(frozen=True)
class Block:
    """Fenced code of a page."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    text = page.read_text()
    return tuple(Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])
                 for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))  # fmt: skip


def written_in(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def prose(page: Path) -> str:
    """A page without its fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# -- Python, settings, prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [b for b in written_in("python") if not b.code.startswith(NEEDS)], ids=str)
def test_python_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, str(block), "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", [b for b in written_in("python") if b.code.startswith(NEEDS)], ids=str)
def test_python_that_cannot_run_here_names_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("block", written_in("yaml"), ids=str)
def test_settings_are_understood(block: Block) -> None:
    build(StreamSettings, yaml.safe_load(block.code))


@pytest.mark.parametrize("block", written_in("json"), ids=str)
def test_prompt_files_are_understood(block: Block) -> None:
    assert read_jobs(block.code.encode(), "prompts.jsonl", seed=0, seconds=20)


# -- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command line that a page shows, without what is set in front of it."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.stem}: {' '.join(self.words)}"


@cache
def commands() -> tuple[Command, ...]:
    found = dict.fromkeys(Command(page, words) for page in PAGES for words in shown(page))
    return tuple(found)


def shown(page: Path) -> Iterator[tuple[str, ...]]:
    """Commands of a page, in blocks and in the text; `... --option` goes on with the last one that was shown."""
    last: tuple[str, ...] = ()
    for found in re.finditer(r"^```sh\n(.*?)^```|`((?:\.\.\. )?[^`\n]+)`", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in (found[1] or found[2]).splitlines():
            words = plain(line)
            if words[:1] == ("...",):
                words = (*last[:2], *words[1:])
            if len(words) > 1 and words[0] in PROGRAMS:
                last = words
                yield words


def plain(line: str) -> tuple[str, ...]:
    """The words of a command line, without variables and the environment's folder."""
    try:
        words = shlex.split(re.sub(r"[\[\]]", "", line) if " [" in line else line, comments=True)
    except ValueError:  # an apostrophe: no command
        return ()
    words = words[words.index("&&") + 1 :] if "&&" in words else words
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return (words[0].removeprefix(".venv/bin/"), *words[1:]) if words else ()


def calls(program: str) -> list[Command]:
    return [command for command in commands() if command.words[0] == program]


def scripts() -> list[Command]:
    """Calls of infer/*.py and train/*.py, by themselves or under torchrun."""
    found = []
    for command in (*calls("python"), *calls("torchrun")):
        at = next((i for i, word in enumerate(command.words) if re.fullmatch(r"(infer|train)/\w+\.py", word)), None)
        if at is not None:
            found.append(Command(command.page, command.words[at:]))
    return found


@pytest.mark.parametrize("command", calls("rollforce"), ids=str)
def test_rollforce_understands_its_commands(command: Command) -> None:
    group: Any = typer.main.get_command(app)
    name, *words = command.words[1:]
    if name != "--help":
        assert name in {*group.commands, *(option for param in group.params for option in param.opts)}, name
    if words:
        context = group.commands[name].make_context(name, words)
        changes = [word for word in context.params.get("words") or () if re.match(r"[\w.]+=", word)]
        if changes:
            build(StreamSettings, preset_file(context.params["stream"] or "rolling"), overrides=changes)


class Understood(Exception):
    """A script has parsed its command line; nothing else is wanted of it."""


@pytest.mark.parametrize("command", scripts(), ids=str)
def test_scripts_understand_their_commands(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *words = command.words
    monkeypatch.setattr("sys.argv", [script, *words])
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, partialmethod(parse_and_stop, parse))
    monkeypatch.setattr(typer, "run", lambda main: parse_typer(main, words))
    with pytest.raises(Understood):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def parse_and_stop(parser: argparse.ArgumentParser, parse: Callable[..., Any], *args: Any) -> None:
    """Parse; of a script of train/, the recipe with its changes, too."""
    parsed = parse(parser, *args)
    stage = Path(sys.argv[0]).stem
    if stage in RECIPES and hasattr(parsed, "overrides"):
        build(RECIPES[stage], resource(f"configs/train/{parsed.recipe}.yaml"), overrides=parsed.overrides)
    raise Understood


def parse_typer(main: Callable[..., Any], words: list[str]) -> None:
    program = typer.Typer()
    program.command()(main)
    typer.main.get_command(program).make_context("script", list(words))
    raise Understood


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_the_text_names_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    known = {option for command in group.commands.values() for param in command.params for option in param.opts}
    sources = [path.read_text() for folder in ("infer", "train", "docs", "rollforce/training")
               for path in (ROOT / folder).glob("*.py")]  # fmt: skip
    for option in set(re.findall(r"`(--[\w-]+)", prose(page))) - known:
        assert any(f'"{option}"' in text for text in sources), f"{page.name}: there is no {option}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {command.words[1] for command in calls("make")}
    assert {"demo", "test", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for page in PAGES for name in re.findall(r'"\.\[(\w+)\]"', page.read_text())}
    assert named and named <= extras.keys()


# -- links and names --------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: no such heading"


def to_make(page: Path) -> set[str]:
    """Files that a page tells its reader to make: by a diff, or called NAME."""
    return set(re.findall(r"^--- /dev/null\n\+\+\+ b/(\S+)$", page.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"(?<![\w/.-])(?:assets|infer|train|configs|tests|rollforce|docs)/[\w./-]*\w", text))
    named -= {*to_make(page), *PLANNED}
    assert not [name for name in named if "NAME" not in name and not list(ROOT.glob(f"{name}*"))]
    files = {path.name for room in ("rollforce", "infer", "train", "tests") for path in (ROOT / room).rglob("*.py")}
    bare = set(re.findall(r"`(\w+\.py)`", prose(page))) - {Path(name).name for name in to_make(page)}
    assert bare <= files, bare - files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_exist(page: Path) -> None:
    for dotted in set(re.findall(r"`(rollforce(?:\.\w+)+)`", prose(page))):
        parts = dotted.split(".")
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(".".join(parts[:-1])), parts[-1]), dotted


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


# -- nothing is left out ----------------------------------------------------------------------------------------------


def rows(page: str) -> set[str]:
    """What the first cells of a page's tables name."""
    return set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE))


def test_every_preset_policy_transition_and_error_is_described() -> None:
    errors = {name for name in rollforce.__all__ if name.endswith(("Error", "Closed", "DoesNotFit"))}
    described = rows("memory-policies.md")
    assert {tier.kind for tier in get_args(AnyTier)} <= described
    assert set(presets()) <= described, "python infer/memory_table.py prints the rows of presets"
    assert set(NAMES) <= rows("steering.md")
    assert errors <= rows("errors.md")


def test_the_example_of_a_policy_fits_the_files_that_it_changes() -> None:
    """All that its context names stands there; line breaks may differ, for other policies come to the same lists."""
    block = next(block for block in written_in("diff") if block.page.name == "a-memory-policy.md")
    for part in block.code.split("\n--- ")[1:]:
        name = re.search(r"^\+\+\+ b/(\S+)$", part, flags=re.MULTILINE)
        assert name is not None
        if name[1] not in to_make(block.page):
            context = "\n".join(line[1:] for line in part.splitlines() if line.startswith((" ", "-")))
            missing = set(re.findall(r"\w+", context)) - set(re.findall(r"\w+", (ROOT / name[1]).read_text()))
            assert not missing, f"{name[1]}: {missing}"


def test_the_files_of_a_chunk_are_those_that_run() -> None:
    """After a change of the engine: python docs/chunk_files.py --write"""
    block = next(b for b in written_in("text") if b.page.name == "architecture.md")
    assert block.code.split() == runpy.run_path(str(ROOT / "docs" / "chunk_files.py"))["chunk_files"]()
