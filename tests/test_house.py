"""The house stands: imports go down its floors, without a circle; a name says one thing; docstrings stand alone."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from repository import ROOT

PACKAGE = ROOT / "rollforce"

# From the ground up: a room may import those on lower lines. What only a type checker imports does not count.
FLOORS = """
errors
config video
checkpoints
models
world cache
engine
training streaming
evaluation
cli
__main__
"""
FLOOR = {room: number for number, line in enumerate(FLOORS.split("\n")) for room in line.split()}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
SCRIPTS = sorted(path for folder in ("infer", "train") for path in (ROOT / folder).glob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES + SCRIPTS}
VAGUE = {"util", "utils", "common", "helper", "helpers", "base", "manager", "wrapper", "misc"}
FRAGMENTS = {"Of", "That", "Those", "Them", "It", "After", "Before", "Ditto", "And", "From", "For", "With"}
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The module or package directly under rollforce that a module belongs to."""
    return [*module.split("."), ""][1]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every dotted name that a file imports when it runs, with its line: from anywhere in it."""
    hidden = {id(inside) for node in ast.walk(TREES[path]) if isinstance(node, ast.If)
              and ast.unparse(node.test) == "TYPE_CHECKING" for inside in ast.walk(node)}  # fmt: skip
    for node in ast.walk(TREES[path]):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write it from rollforce"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def definitions_of(path: Path) -> Iterator[Definition]:
    return (node for node in ast.walk(TREES[path]) if isinstance(node, Definition))


def test_there_are_ten_rooms_and_tests_for_each() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")} - {"py.typed"}
    rooms = {name for name in entries if (PACKAGE / name).is_dir()}
    assert len(entries) <= 12 and len(rooms) == 10, sorted(entries)
    tests = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__", "golden"}
    assert tests == rooms


def test_imports_only_go_down() -> None:
    assert len(FLOORS.split("\n")) - 2 <= 11
    up = [f"{name_of(path)}:{line} imports {dotted}"
          for path in MODULES for line, dotted in imports_of(path) if dotted.startswith("rollforce.")
          if room_of(dotted) != room_of(module_of(path))
          if FLOOR[room_of(dotted)] >= FLOOR[room_of(module_of(path))]]  # fmt: skip
    assert not up


def test_no_module_imports_itself_through_others() -> None:
    known = {module_of(path) for path in MODULES}
    below: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        for _, dotted in imports_of(path):
            below[module_of(path)].add(dotted if dotted in known else dotted.rpartition(".")[0])
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join((*above[above.index(module) :], module))
        if module in known and module not in done:
            for other in below[module]:
                visit(other, (*above, module))
            done.add(module)

    for module in known:
        visit(module, ())


def test_functions_stay_short() -> None:
    lengths = {f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
               for path in MODULES for node in definitions_of(path)
               if not isinstance(node, ast.ClassDef)}  # fmt: skip
    assert not {where: length for where, length in lengths.items() if length > 60}
    assert sum(length <= 20 for length in lengths.values()) >= 0.95 * len(lengths)


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES + SCRIPTS:
        for node in definitions_of(path):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name_of(path))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_names_say_what_they_are() -> None:
    names = [(path, name) for path in MODULES + SCRIPTS
             for name in (path.stem, *(node.name for node in definitions_of(path)))]  # fmt: skip
    words = {(path, name): {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name.replace("_", " "))}
             for path, name in names}  # fmt: skip
    allowed = {"base_model"}  # the field's word, of model cards
    assert not [f"{name_of(path)}: {name}" for (path, name), parts in words.items()
                if parts & VAGUE and name not in allowed]  # fmt: skip
    assert not [f"{name_of(path)}: {name}: we write colour" for (path, name), parts in words.items()
                if parts & {"color", "colors"}]  # fmt: skip


def test_docstrings_stand_by_themselves() -> None:
    """A docstring is a whole sentence or noun phrase that is understood without the signature."""
    wrong = []
    for path in MODULES:
        for node in (TREES[path], *definitions_of(path)):
            text = ast.get_docstring(node)
            if text is None:
                continue
            first = text.split("\n\n")[0].split("\n    ")[0].strip()
            short = len(first.split()) < 3 and not first.startswith("See ")
            if first.split()[0].strip(",:") in FRAGMENTS or short or first[-1] not in ".:`?":
                wrong.append(f"{name_of(path)}:{getattr(node, 'lineno', 1)} {first[:60]!r}")
    assert not wrong, "\n".join(wrong)


def test_the_library_prints_nothing_catches_nothing_blindly_and_keeps_sys_modules() -> None:
    for path in MODULES:
        for node in ast.walk(TREES[path]):
            where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else ""
                assert caught not in ("", "Exception", "BaseException"), f"{where} catches anything"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{where} prints"
            if isinstance(node, ast.Assign | ast.Delete):
                targets = node.targets
                assert not any("sys.modules" in ast.unparse(target) for target in targets), f"{where}: sys.modules"


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]}
    optional = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for name, lines in project["optional-dependencies"].items()
                if name != "dev" for line in lines}  # fmt: skip
    names = {"yaml": "pyyaml", "PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    needed: dict[str, str] = {}
    for path in MODULES:
        for line, dotted in imports_of(path):
            top = dotted.split(".")[0]
            if top != "rollforce" and top not in sys.stdlib_module_names:
                needed[names.get(top, top).lower()] = f"{name_of(path)}:{line}"
    assert not set(needed) - declared - optional, {name: needed[name] for name in set(needed) - declared - optional}
    assert not declared - set(needed), "declared but never imported"


TELLING = {"test_goldens", "test_field_tools", "test_lora_goldens", "test_presets", "test_memory_table",
           "test_wan_full", "test_wan_stream"}  # fmt: skip
"""Test files of several modules or of a script, in the room where most of it lives."""


def test_tests_stand_where_what_they_test_stands() -> None:
    tests = ROOT / "tests"
    for path in tests.rglob("test_*.py"):
        module = (PACKAGE / path.relative_to(tests)).with_name(path.name.removeprefix("test_"))
        assert path.parent == tests or module.is_file() or path.stem in TELLING, name_of(path)


def test_tests_share_named_modules_and_use_public_names() -> None:
    trees = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
    of_tests = {path.stem for path in trees if path.stem.startswith("test_")} | {"conftest"}
    private = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                module = node.module if isinstance(node, ast.ImportFrom) else None
                assert not {*names, module} & of_tests, f"{name_of(path)}:{node.lineno} imports another test"
            elif isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "delattr")):
                names = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
            private += [f"{name_of(path)}:{node.lineno} {name}" for name in names if re.match("_[^_]", name)]
    assert len(private) < 15, private
