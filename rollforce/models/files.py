"""A small module in a folder: config.json (its dataclass) beside model.safetensors (float16)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from rollforce.errors import CheckpointError

M = TypeVar("M", bound=nn.Module)


def save_module(module: nn.Module, config: Any, folder: str | Path) -> None:
    """Write `config`, a dataclass, and the weights of `module` into `folder`, which is made if it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, folder / "model.safetensors")


def load_module(module: Callable[[Any], M], config: Callable[..., Any], folder: str | Path, what: str) -> M:
    """Read what `save_module` wrote into `module(config(...))`, as float32, in eval mode.

    CheckpointError, which names it as `what`, if it is missing or does not fit."""
    folder = Path(folder)
    try:
        settings = config(**json.loads((folder / "config.json").read_text()))
        weights = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise CheckpointError(f"no {what} in {folder}: {error.filename or error} is missing") from error
    except (TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe the {what}: {error}") from error
    loaded = module(settings)
    try:
        loaded.load_state_dict({k: v.float() for k, v in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from error
    return loaded.eval()
