"""Which head belongs to which group: a JSON file that a tool makes for a model and a preset names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rollforce.errors import ConfigError

Labels = tuple[tuple[str, ...], ...]
"""Of each layer, the group of each head."""
MAKE = "infer/heads.py makes such a file for a model."


def read_labels(path: Path) -> Labels:
    """The labels of a JSON file {"description": ..., "layers": [["static", "dynamic", ...], ...]}. ConfigError."""
    try:
        layers = json.loads(path.read_text())["layers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"heads.file {path} cannot be read as head groups ({type(error).__name__}: {error}). {MAKE}"
                          ) from error  # fmt: skip
    right = isinstance(layers, list) and all(isinstance(layer, list) for layer in layers)
    if not right or not all(isinstance(label, str) for layer in layers for label in layer):
        raise ConfigError(f'heads.file {path}: "layers" must be a list of lists of labels. {MAKE}')
    return tuple(tuple(layer) for layer in layers)


def write_labels(path: Path, labels: Labels, description: str, **measured: Sequence[Sequence[float]]) -> Path:
    """The file that `read_labels` reads, a line for each layer; `measured`: numbers of each head beside its label."""
    tables = {"layers": labels} | {name: [[round(number, 4) for number in row] for row in table]
                                   for name, table in measured.items()}  # fmt: skip
    lines = [f'  "{name}": [\n' + ",\n".join(f"    {json.dumps(row)}" for row in table) + "\n  ]"
             for name, table in tables.items()]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join([f'  "description": {json.dumps(description)}', *lines]) + "\n}\n")
    return path
