"""Checkpoints of training: a folder per step, and a pointer to the newest whole one.

    OUT/checkpoint-000200/state.pt      networks, averages, optimisers: the same for any number of processes
    OUT/checkpoint-000200/part-3.pt     what belongs to part 3 of the batch (its running streams)
    OUT/checkpoint-000200/recipe.json   settings and the fingerprint of the data
    OUT/latest                          the name of the newest; replaced last, so that a crash never leaves half of one
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rollforce.checkpoints.outputs import replacing, write_whole
from rollforce.errors import TrainingError

POINTER = "latest"  # the file that names the newest
FREE = ("run.tell_every", "run.save_every", "run.show_every", "run.keep", "run.recompute", "run.compile",
        "workers", "data.workers")  # fmt: skip
"""Settings that may differ on resuming: they do not change the numbers."""


def folder_of(out: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return out / f"checkpoint-{step:06d}"


def latest(out: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, None if there is none."""
    pointer = out / POINTER
    return out / pointer.read_text().strip() if pointer.is_file() else None


def save_part(out: Path, step: int, part: int, state: Mapping[str, Any]) -> None:
    """Write what belongs to one part of the batch. Any process may call this, before one calls `save`."""
    folder = folder_of(out, step)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"part-{part}.pt") as file:
        torch.save(dict(state), file)


def save(out: Path, step: int, state: Mapping[str, Any], recipe: Mapping[str, Any], data: str, keep: int) -> Path:
    """Write the rest, make the checkpoint the newest, and remove all but the `keep` newest. One process calls this.

    Not accelerate's `save_state`: it knows prepared models only, and writes files per process, which bind a run to its
    number of processes; here any number that divides `run.parts` may go on."""
    folder = folder_of(out, step)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "state.pt") as file:
        torch.save({**state, "step": step}, file)
    write_whole(folder / "recipe.json", json.dumps({"recipe": recipe, "data": data}, indent=1) + "\n")
    write_whole(out / POINTER, folder.name)
    whole = sorted(path for path in out.glob("checkpoint-*") if (path / "recipe.json").is_file())
    for old in whole[:-keep]:
        if old != folder:
            shutil.rmtree(old)
    return folder


def load(folder: Path, recipe: Mapping[str, Any], data: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the state written by `save`. TrainingError if it is damaged, or of another recipe or other data."""
    written, state = (_read(folder, name, device) for name in ("recipe.json", "state.pt"))
    changed = [f"  {path}: {before!r} -> {now!r}" for path, before, now in differences(written["recipe"], recipe)
               if path not in FREE]  # fmt: skip
    if changed:
        listed = "\n".join(changed)
        raise TrainingError(f"{folder} was made with other settings (checkpoint -> now):\n{listed}\nResume with the "
                            "old settings, or begin a new run in another --out with `start` set to its export.")
    if written["data"] != data:
        raise TrainingError(f"{folder} was trained on other data: fingerprint {written['data']}, now {data}. The "
                            "autoencoder, the world or the latent folder has changed; resume with the old one, or "
                            "begin a new run in another --out.")  # fmt: skip
    return state


def load_part(folder: Path, part: int, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return what `save_part` wrote. TrainingError if it is missing or damaged."""
    return _read(folder, f"part-{part}.pt", device)


def _read(folder: Path, name: str, device: str | torch.device) -> dict[str, Any]:
    kind = torch.device(device)  # accelerate calls the CPU of a process cpu:0, which torch.load does not know
    path, place = folder / name, "cpu" if kind.type == "cpu" else kind
    remedy = "Resume from another checkpoint (--resume FOLDER), or begin a new run in another --out."
    try:
        content: dict[str, Any] = (
            json.loads(path.read_text()) if path.suffix == ".json" else
            torch.load(path, map_location=place, weights_only=True))
    except FileNotFoundError as error:
        raise TrainingError(f"{folder} is no whole checkpoint: {name} is missing. {remedy}") from error
    except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{folder} is no whole checkpoint: {name} is damaged ({error}). {remedy}") from error
    return content


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two trees of settings differ: (dotted path, value before, value now)."""
    before, now = (list(value) if isinstance(value, tuple) else value for value in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield path, before, now
