"""The errors that a user meets: all of one root, and all of them public."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import rollforce
from rollforce import errors

CLASSES = {name: found for name, found in vars(errors).items() if inspect.isclass(found)}


def test_every_error_is_a_public_name() -> None:
    assert len(CLASSES) >= 8 and set(CLASSES) <= set(rollforce.__all__)
    assert all(getattr(rollforce, name) is found for name, found in CLASSES.items())


def test_every_error_is_of_one_root_and_stands_in_the_tree() -> None:
    assert all(issubclass(found, rollforce.RollforceError) for found in CLASSES.values())
    tree = set(re.findall(r"\w+", errors.__doc__ or ""))
    assert set(CLASSES) <= tree


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing a module sets its name on the package that holds it: it would take the place of what is public."""
    modules = {path.stem for path in Path(rollforce.__file__).parent.iterdir()}
    assert not modules & set(rollforce.__all__)
    assert not [name for name in rollforce.__all__ if inspect.ismodule(getattr(rollforce, name))]
