"""The one reader and the one writer of JSON files beside weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollforce.errors import CheckpointError


def read_json(path: Path, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the object in a JSON file, or `default` where there is no such file.

    CheckpointError if the file is missing and there is no default, or if it holds no JSON object."""
    if default is not None and not path.is_file():
        return dict(default)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; an object was expected.")
    return content


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write an object to a JSON file, whose folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
