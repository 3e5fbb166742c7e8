"""Prompt files as other tools write them, told by their endings: lines of text or JSON, JSON and YAML lists, tables."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from rollforce.errors import ConfigError

COLUMNS = {"prompt": "prompt", "caption": "prompt", "text": "prompt"}
"""What a column with prompts may be called in a table."""
NUMBERS = {"seed": int, "seconds": float}


def list_entries(text: str, source: str) -> Iterator[tuple[int, Any]]:
    """Yield what a prompt file says of each video, a prompt or a mapping of settings, with its line, or its place in a
    list. Lines are left as they are. ConfigError for a list or a table that cannot be read."""
    ending = Path(source).suffix.lower()
    if ending in (".csv", ".tsv"):
        yield from _read_table(text, source, "\t" if ending == ".tsv" else ",")
    elif ending in (".yaml", ".yml"):
        yield from enumerate(_check_list(_read_yaml(text, source), source), start=1)
    elif ending == ".json" or (ending not in (".txt", ".jsonl") and text.lstrip().startswith("[")):
        yield from enumerate(_check_list(_read_json(text, source), source), start=1)
    else:
        lines = enumerate((line.strip() for line in re.split(r"\r\n|\r|\n", text)), start=1)
        yield from ((number, line) for number, line in lines if line and not line.startswith("#"))


def _read_json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid JSON ({error}). Write a list, or one object a line in a "
                          ".jsonl file.") from error


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}. Write a list of prompts, "
                          "each in quotes.") from error


def _check_list(value: Any, source: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f'{source} must hold a list of prompts, such as ["a red ball", "a blue star"], or of objects '
                          f"with prompt, seed and seconds; it holds a {type(value).__name__}.")  # fmt: skip
    return value


def _read_table(text: str, source: str, comma: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(StringIO(text, newline=""), delimiter=comma)
    try:
        names = [COLUMNS.get(name.strip().lower(), name.strip()) for name in next(rows, [])]
        if names.count("prompt") != 1:
            raise ConfigError(f"{source}: one column must be called prompt; the first line says {', '.join(names)}. "
                              "Name the columns there: prompt, and if wanted id, seed, seconds.")  # fmt: skip
        for row in rows:
            if any(cell.strip() for cell in row):
                yield rows.line_num, _read_row(names, row, f"{source}:{rows.line_num}")
    except csv.Error as error:
        raise ConfigError(f"{source}:{rows.line_num}: not a table: {error}.") from error


def _read_row(names: list[str], row: list[str], where: str) -> dict[str, Any]:
    if len(row) > len(names):
        raise ConfigError(f"{where}: {len(row)} cells, of {len(names)} columns. Put text with commas in quotes.")
    cells = {name: cell.strip() for name, cell in zip(names, row, strict=False) if cell.strip()}
    return {name: _read_number(cell, NUMBERS[name]) if name in NUMBERS else cell for name, cell in cells.items()}


def _read_number(cell: str, kind: type[int] | type[float]) -> int | float | str:
    try:
        return kind(cell)
    except ValueError:
        return cell
