"""What a file or folder is, how that is known, and what to do with it: from first bytes, settings and headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from rollforce.checkpoints.catalog import CARD, Card, bundled
from rollforce.checkpoints.distributed import METADATA
from rollforce.checkpoints.formats import format_of
from rollforce.checkpoints.headers import read_header
from rollforce.checkpoints.identity import Identity, facts_of, render_with
from rollforce.checkpoints.obstacles import obstacles
from rollforce.checkpoints.origin import causality_of, origin_of
from rollforce.checkpoints.parts import read_model
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, read_json
from rollforce.checkpoints.weights_identity import RESUME, identify_weights
from rollforce.config import build, resource
from rollforce.errors import CheckpointError, stand_in
from rollforce.video.outputs import beside


def identify(path: str | Path) -> Identity:
    """Say what a file or folder is; a bundled model's name too. CheckpointError if nothing tells, or it is damaged."""
    if str(path) in bundled():
        return replace(_folder(resource(f"assets/{path}")), then=render_with("--model", path))
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}. Bundled models: {', '.join(bundled())}.")
    return _folder(path) if path.is_dir() else _file(path)


# -- folders -----------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Identity:
    if (folder / CARD).is_file() or (folder / "model_index.json").is_file():
        return _model(folder)
    if (folder / "latest").is_file() or any(folder.glob("checkpoint-*/state.pt")):
        return _training(folder)
    stems = (find_weights(folder, stem) for stem in dict.fromkeys(STEM.values()))
    distributed = folder / METADATA if (folder / METADATA).is_file() else None
    if (found := distributed or next((found for found in stems if found is not None), None)) is not None:
        inside = identify_weights(found, read_header(found))
        return replace(inside, path=folder, then=inside.then.replace(quote(str(found)), quote(str(folder))))
    if inner := [each for each in ("transformer", "high_noise_model") if (folder / each).is_dir()]:
        return _folder(folder / inner[0])
    raise CheckpointError(f"{folder} holds no model, no weights and no training run that is known here. Name a file in "
                          "it.")  # fmt: skip


def _model(folder: Path) -> Identity:
    parts, origin, config = read_model(folder), origin_of(folder), read_json(folder / "transformer" / "config.json", {})
    known, reasons = causality_of(folder / "transformer" / STEM["transformer"], config), obstacles(parts)
    found = Identity(
        folder, "model", "a model folder" if reasons else "a model folder, whole", "folder of safetensors",
        parts.transformer.family if parts.transformer else "", known.value, known.by, origin.licence, origin.licence_by,
        origin.stream, origin.release_by if origin.stream else "", facts_of(parts.transformer),
        streams=not reasons and known.value is not False, obstacles=reasons)  # fmt: skip
    if known.value is False:
        why = (f"It is a bidirectional teacher ({known.by}): it cannot stream. A student is distilled from it: "
               "train/distill.py.")  # fmt: skip
        make = f"rollforce convert STUDENT --base {quote(str(folder))} --out FOLDER"
        return replace(found, obstacles=(*reasons, why), then=make)
    if (folder / CARD).is_file():
        card, by = build(Card, folder / CARD), str(folder / CARD)
        found = replace(found, licence=card.licence, licence_by=by, stream=card.stream, stream_by=by)
        return replace(found, then="" if reasons else render_with("--model", folder))
    stream = f" --stream {origin.stream or 'PRESET'}"
    return replace(found, needs=("--stream PRESET: no card says how it streams",),
                   then="" if reasons else render_with("--model", folder, stream))  # fmt: skip


def _training(folder: Path) -> Identity:
    steps = sorted(path.parent.name for path in folder.glob("checkpoint-*/state.pt"))
    exported = sorted(path.parent.name for path in folder.glob(f"*/{CARD}"))
    newest = steps[-1] if steps else "none yet"
    then = render_with("--model", folder / exported[-1]) if exported else ""
    return Identity(folder, "training", f"the folder of a training run, {len(steps)} checkpoints, the newest {newest}",
                    "folder", facts={"exports": exported}, then=then,
                    needs=() if exported else ("an export: training makes one at its end",))  # fmt: skip


# -- files -------------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Identity:
    if told := stand_in(path):
        raise CheckpointError(told)
    told = format_of(path)
    if told == "json" and ".safetensors.index." not in path.name:
        return _record(path)
    place = quote(str(path))
    plain = {"picture": ("a picture", render_with("--image", path)), "video": ("a video", render_with("--video", path)),
             "yaml": ("settings of a stream, or a card", f"rollforce inspect --stream {place}"),
             "text": ("prompts, one a line", f"rollforce render --prompts {place}")}  # fmt: skip
    if told in plain:
        return Identity(path, told, plain[told][0], told, then=plain[told][1])
    return identify_weights(path, read_header(path))


def _record(path: Path) -> Identity:
    content = read_json(path)
    if not {"request", "stream", "model"} <= set(content):
        raise CheckpointError(f"{path} is JSON, and no record of a render nor an index of weights: its first words are "
                              f"{', '.join(list(content)[:5]) or 'none'}.")  # fmt: skip
    request, model, result = (_object(content.get(name)) for name in ("request", "model", "result"))
    named = Path(str(content.get("video") or path.stem)).name.replace("-%04d", "")  # of a video in several files
    video = path.parent if path.name == "record.json" else path.with_name(named or path.stem)
    stopped = bool(result.get("interrupted", not result)) and beside(video, RESUME).is_file()
    then = f"--resume {quote(str(video))}" if stopped else f"--from {quote(str(path))} -o again.mp4"
    return Identity(path, "record", f"the record of a render{' that was stopped' if stopped else ''}: {video.name}",
                    "json", licence=str(model.get("licence", "")), licence_by="the record",
                    facts={name: request.get(name) for name in ("prompt", "seed", "seconds", "size")},
                    then=f"rollforce render {then}")  # fmt: skip


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
