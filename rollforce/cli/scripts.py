"""Scripts of `train/` and `infer/` as commands: the same files, which a wheel holds beside the package's rooms."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rollforce.config import resource
from rollforce.errors import ConfigError


def list_scripts(folder: str) -> dict[str, Path]:
    """Return the scripts of a shipped folder by their names."""
    return {path.stem: path for path in sorted(resource(folder).glob("*.py"))}


def describe_scripts(folder: str) -> Iterator[str]:
    """Yield a line for each script: its name, and the first sentence of what it says of itself."""
    for name, path in list_scripts(folder).items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield f"  {name:<12} {text.splitlines()[0] if text else ''}".rstrip()


def run_script(folder: str, name: str, words: Sequence[str]) -> None:
    """Run a script as Python would run its file, with these words behind its name. ConfigError if there is none."""
    scripts = list_scripts(folder)
    if name not in scripts:
        raise ConfigError(f"There is no {name!r} in {folder}: use one of {', '.join(scripts)}.")
    sys.argv = [str(scripts[name]), *words]
    runpy.run_path(str(scripts[name]), run_name="__main__")
