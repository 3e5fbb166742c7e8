"""The house stands: imports only go down its floors, files and functions stay small, and vague names stay out."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

PACKAGE = ROOT / "rollforce"

# From the ground up: a module may import what stands on a lower line, and modules of its own package.
FLOORS = """
errors
types schema machine options workers
config
flow schedule noise rope drift words pictures
layout positions attention
cache
models world
rollout sizes
recache shots together
settings snapshot sharing transitions
rungs
cues
running trace ahead chunk
given needs loaded memory_map prompts
distill fits head_profile
bench frame_rewards
steering batch waiting
live stand
opening
session
model search
load
video conversion unfinished trial
record
render convert
plan terminal screen doctor fits_table inspection
making
cli server
__main__
"""
FLOOR = {name: number for number, line in enumerate(FLOORS.split("\n")) for name in line.split()}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
SCRIPTS = sorted(path for folder in ("infer", "train") for path in (ROOT / folder).glob("*.py"))
VAGUE = {"util", "utils", "common", "helper", "helpers", "base", "manager", "wrapper", "misc"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The module or sub-package directly under rollforce that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every dotted name that a file imports anywhere in it, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it from rollforce"
            if node.module == "rollforce":
                yield from ((node.lineno, f"rollforce.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module or ""


def definitions_of(path: Path) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"give {room} a floor in tests/test_floors.py"
    for line, dotted in imports_of(path):
        parts = dotted.split(".")
        if parts[0] == "rollforce" and len(parts) > 1 and parts[1] != room and parts[1] in FLOOR:
            assert FLOOR[parts[1]] < FLOOR[room], f"{name_of(path)}:{line} imports {dotted}, which is not below {room}"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350, f"{name_of(path)} is longer than 350 lines"
    for node in definitions_of(path):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if not isinstance(node, ast.ClassDef):
            longest = 120 if path in SCRIPTS and node.name == "main" else 60  # a script is read from top to bottom
            assert length <= longest, f"{name_of(path)}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_names_say_what_they_are(path: Path) -> None:
    names = [path.stem, *(node.name for node in definitions_of(path))]
    for name in names:
        words = set(re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name.replace("_", " ")))
        lower = {word.lower() for word in words}
        assert not lower & VAGUE, f"{name_of(path)}: {name} does not say what it is"
        assert not {"color", "colors"} & lower, f"{name_of(path)}: {name}: we write colour"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_library_prints_nothing_and_catches_nothing_blindly(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            assert caught not in ("", "Exception", "BaseException"), f"{name_of(path)}:{node.lineno} catches anything"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{name_of(path)}:{node.lineno} prints"


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]}
    optional = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for extra in ("wan", "serve", "train")
                for line in project["optional-dependencies"][extra]}
    names = {"yaml": "pyyaml", "PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    needed: dict[str, str] = {}
    for path in MODULES:
        for line, dotted in imports_of(path):
            top = dotted.split(".")[0]
            if top != "rollforce" and top not in sys.stdlib_module_names:
                needed[names.get(top, top).lower()] = f"{name_of(path)}:{line}"
    assert not set(needed) - declared - optional, {name: needed[name] for name in set(needed) - declared - optional}
    assert not declared - set(needed), "declared but never imported"
