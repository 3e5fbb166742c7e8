"""Loading by name: `rollforce.load` is a function, whatever was imported before."""

from __future__ import annotations

import inspect
import subprocess
import sys

import rollforce
import rollforce.streaming.load


def test_load_stays_a_function() -> None:
    assert inspect.isfunction(rollforce.load) and rollforce.load is rollforce.streaming.load.load


def test_load_is_a_function_in_a_program_that_imports_its_module_first() -> None:
    code = "import rollforce.streaming.load, rollforce; assert callable(rollforce.load), rollforce.load"
    subprocess.run([sys.executable, "-c", code], check=True)
