"""What a file or folder is, how that is known, and what to do with it: from its first bytes, settings and headers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from rollforce.checkpoints.catalog import CARD, bundled
from rollforce.checkpoints.decoders import WAN, find_decoder
from rollforce.checkpoints.formats import format_of
from rollforce.checkpoints.headers import Header, read_header
from rollforce.checkpoints.obstacles import BASE, EXPERTS, obstacles, of_transformer
from rollforce.checkpoints.origin import causality_of, origin_of
from rollforce.checkpoints.parts import Part, experts_of, read_model, text_part, transformer_part
from rollforce.checkpoints.read import WHAT, Checkpoint, read_checkpoint
from rollforce.checkpoints.safetensors_folder import STEM, find_weights, read_json
from rollforce.checkpoints.shapes import autoencoder_config_of, check_whole, config_of
from rollforce.config import build
from rollforce.errors import CheckpointError, stand_in

PROMPT = '"a red ball bounces over green hills"'
ADAPTER = re.compile(r"\.(lora|diff|dora|hada|lokr|oft)[._]|\.diff$|^lora_")


@dataclass(frozen=True)
class Identity:
    """What something is. `kind` transformer, autoencoder, text, lora, decoder, model, base, snapshot, record, training or
    prompts; `what` in words; `format` of its file; `causal` and `causal_by`, None where nothing tells; `streams`
    whether it can stream here, itself or once converted (None: it is no model), `obstacles` why it cannot; `needs` what
    it wants besides; `then` the command to go on with, "" if there is none."""

    path: Path
    kind: str
    what: str
    format: str = ""
    family: str = ""
    causal: bool | None = None
    causal_by: str = ""
    licence: str = ""
    licence_by: str = ""
    stream: str = ""
    stream_by: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of a transformer, measured
    needs: tuple[str, ...] = ()
    streams: bool | None = None
    obstacles: tuple[str, ...] = ()
    then: str = ""


def identify(path: str | Path) -> Identity:
    """Say what a file or folder is; a bundled model's name too. CheckpointError if nothing tells, or it is damaged."""
    from rollforce.config import resource

    if str(path) in bundled():
        then = f'rollforce render "a red ball bounces over green hills" --model {path}'
        return replace(_folder(resource(f"assets/{path}")), then=then)
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no file or folder {path}.")
    return _folder(path) if path.is_dir() else _file(path)


# -- folders -----------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Identity:
    if (folder / CARD).is_file() or (folder / "model_index.json").is_file():
        return _model(folder)
    if (folder / "latest").is_file() or any(folder.glob("checkpoint-*/state.pt")):
        return _training(folder)
    if (found := _weights_in(folder)) is not None:
        inside = _weights(found, read_header(found))
        return replace(inside, path=folder, then=inside.then.replace(quote(str(found)), quote(str(folder))))
    if inner := [each for each in ("transformer", "high_noise_model") if (folder / each).is_dir()]:
        return identify(folder / inner[0])
    raise CheckpointError(f"{folder} holds no model, no weights and no training run that is known here. Name a file in it.")


def _weights_in(folder: Path) -> Path | None:
    stems = (find_weights(folder, stem) for stem in dict.fromkeys(STEM.values()))
    return next((found for found in stems if found is not None), None)


def _model(folder: Path) -> Identity:
    from rollforce.checkpoints.catalog import Card

    card = build(Card, folder / CARD) if (folder / CARD).is_file() else None
    parts, origin = read_model(folder), origin_of(folder)
    config = read_json(folder / "transformer" / "config.json", {})
    known = causality_of(folder / "transformer" / STEM["transformer"], config)
    found = obstacles(parts)
    stream = "" if card else f" --stream {origin.stream or 'PRESET'}"
    render = f"rollforce render {PROMPT} --model {quote(str(folder))}{stream}"
    make = f"rollforce convert STUDENT --base {quote(str(folder))} --out FOLDER"
    return Identity(
        folder, "model", "a model folder, whole" if not found else "a model folder", "folder of safetensors",
        parts.transformer.family if parts.transformer else "", known.value, known.by,
        card.licence if card else origin.licence, str(folder / CARD) if card else origin.licence_by,
        card.stream if card else origin.stream, str(folder / CARD) if card else origin.release_by,
        _facts(parts.transformer), {}, () if card else ("--stream PRESET: no card says how it streams",),
        not found and known.value is not False, found or _teacher(known.value, known.by),
        "" if found else render if known.value is not False else make)  # fmt: skip


def _teacher(causal: bool | None, by: str) -> tuple[str, ...]:
    if causal is not False:
        return ()
    return (f"It is a bidirectional teacher ({by}): it cannot stream. A student is distilled from it: train/distill.py.",)


def _training(folder: Path) -> Identity:
    steps = sorted(path.parent.name for path in folder.glob("checkpoint-*/state.pt"))
    pointer = folder / "latest"
    newest = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else (steps or [""])[-1]
    recipe = read_json(folder / newest / "recipe.json", {}).get("recipe") or {}
    exported = sorted(path.parent.name for path in folder.glob(f"*/{CARD}"))
    then = f"rollforce render {PROMPT} --model {quote(str(folder / exported[-1]))}" if exported else ""
    return Identity(folder, "training", f"the folder of a training run, {len(steps)} checkpoints, the newest {newest}",
                    "folder", facts={"checkpoints": steps, "exports": exported, "recipe": recipe}, then=then)  # fmt: skip


# -- files -------------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Identity:
    if told := stand_in(path):
        raise CheckpointError(told)
    told = format_of(path)
    if told == "json":
        return _json(path)
    if told in ("picture", "video"):
        word = "--image" if told == "picture" else "--video"
        return Identity(path, told, f"a {told}", told, then=f"rollforce render {PROMPT} {word} {quote(str(path))}")
    if told == "yaml":
        return Identity(path, "settings", "a YAML file: settings of a stream, or a card", "YAML",
                        then=f"rollforce inspect --stream {quote(str(path))}")  # fmt: skip
    if told == "text":
        return Identity(path, "prompts", "a text: prompts, one a line", "text", then=f"rollforce render --prompts {quote(str(path))}")
    return _weights(path, read_header(path))


def _json(path: Path) -> Identity:
    """A record of a render, or an index of weights."""
    if ".safetensors.index." in path.name:
        return _weights(path, read_header(path))
    content = read_json(path)
    if not {"request", "stream", "model"} <= set(content):
        raise CheckpointError(f"{path} is JSON, and no record of a render nor an index of weights: its first words are "
                              f"{', '.join(list(content)[:5]) or 'none'}.")  # fmt: skip
    request, model = content["request"], content["model"]
    done = (content.get("result") or {"interrupted": True}).get("interrupted")
    video = path.with_name(str(content.get("video", "")))
    facts = {name: request.get(name) for name in ("prompt", "seed", "seconds", "size") if isinstance(request, dict)}
    then = f"rollforce render --resume {quote(str(video))}" if done else f"rollforce render --from {quote(str(path))} -o again.mp4"
    return Identity(path, "record", f"the record of a render{' that was stopped' if done else ''}: {video.name}", "JSON",
                    licence=str(model.get("licence", "")), licence_by="the record", facts=facts, then=then)  # fmt: skip


def _weights(path: Path, header: Header) -> Identity:
    if "rollforce" in header.metadata:
        return _snapshot(path, header)
    if any(ADAPTER.search(name) for name in header.tensors):
        return _lora(path, header)
    if (found := header.ours()) is None:
        return _decoder_or_nothing(path, header)
    kind, state = found
    _, reasons = _try(path)
    look = {"transformer": _transformer, "autoencoder": _autoencoder, "text": _text}[kind]
    return look(path, header, state, reasons)


def _try(path: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """What `convert` reads of a file, mapped and not loaded; or why it does not."""
    try:
        return read_checkpoint(path), ()
    except CheckpointError as error:
        return None, (str(error),)


def _snapshot(path: Path, header: Header) -> Identity:
    told = json.loads(header.metadata["rollforce"])
    video = path.with_name(path.name.replace(".resume.safetensors", ".mp4"))
    facts = {name: told.get(name) for name in ("version", "prompt", "seed", "size", "model")}
    then = f"rollforce render --resume {quote(str(video))}" if video != path else "rollforce.Snapshot.load(PATH), then model.resume"
    return Identity(path, "snapshot", "a snapshot of a stream", "safetensors", facts=facts, then=then)


def _lora(path: Path, header: Header) -> Identity:
    ranks = {min(tensor.shape) for name, tensor in header.tensors.items() if re.search(r"lora[._](B|up|down|A)\b", name)
             and tensor.dim() > 1}  # fmt: skip
    origin, (checkpoint, found) = origin_of(path), _try(path)
    targets = len({name.split(".lora_")[0] for name in (checkpoint.state if checkpoint else header.tensors)})
    facts = {"modules": targets, "rank": max(ranks, default=0), "numbers": header.numbers}
    return Identity(path, "lora", "a LoRA", header.format, WAN, licence=origin.licence, licence_by=origin.licence_by,
                    facts=facts, needs=("the model that it was trained on: --model FOLDER",), obstacles=found,
                    then="" if found else f"rollforce render {PROMPT} --model FOLDER --lora {quote(str(path))}")  # fmt: skip


def _decoder_or_nothing(path: Path, header: Header) -> Identity:
    if "decoder.1.weight" not in header.tensors:
        raise CheckpointError(f"{path} ({header.format}) is none of {', '.join(WHAT.values())}, a small decoder, a snapshot. "
                              f"Its first names: {', '.join(list(header.tensors)[:5])}.")  # fmt: skip
    facts, found = {"parameters": header.parameters, "numbers": header.numbers}, ()
    try:
        known = find_decoder(path, header.tensors)
    except CheckpointError as error:
        return Identity(path, "decoder", "a small decoder in TAEHV's format", header.format, facts=facts,
                        obstacles=(str(error),))  # fmt: skip
    if known.family != WAN:
        found = (f"It draws the latents of {known.family}; streams here make those of {WAN}.",)
    facts["latents"] = "normalised" if known.normalised else "as the autoencoder makes them"
    return Identity(path, "decoder", "a small decoder in TAEHV's format", header.format, known.family, facts=facts,
                    needs=("a converted Wan model: --model FOLDER",), obstacles=found,
                    then="" if found else f"rollforce render {PROMPT} --model FOLDER --decoder {quote(str(path))}")  # fmt: skip


def _transformer(path: Path, header: Header, state: Mapping[str, Tensor], unread: tuple[str, ...]) -> Identity:
    config, origin = read_json(path.parent / "config.json", {}), origin_of(path)
    original = "text_embedding.0.weight" in header.tensors
    known, part = causality_of(path, config, original), transformer_part(path, state, config)
    found = [*([EXPERTS] if experts_of(path) > 1 else []), *of_transformer(replace(part, class_name="")), *unread]
    if not found:
        try:
            check_whole(state, path.name)
        except CheckpointError as error:
            found.append(str(error))
    explicit = known.foreign or known.value is False
    extra = " --teacher" if explicit else "" if origin.stream else " --stream PRESET"
    out = re.sub(r"[^\w-]", "-", path.stem)
    what = {True: "a causal student", False: "a bidirectional teacher", None: "a transformer"}[known.value]
    what = f"{what} of {part.family or 'the shape of Wan'}" if experts_of(path) == 1 else "one expert of Wan 2.2 A14B"
    return Identity(
        path, "transformer", what, _format(header), part.family, known.value, known.by,
        origin.licence, origin.licence_by, origin.stream, origin.release_by if origin.stream else "",
        _facts(part) | {"parameters": header.parameters, "numbers": header.numbers},
        config_of(state, part.heads) if part.heads else {}, ("autoencoder, text encoder and tokenizer of its base: --base",), not found and not explicit, tuple(found),
        "" if found else f"rollforce convert {quote(str(path))} --base {BASE} --out {out}{extra}")  # fmt: skip


def _autoencoder(path: Path, header: Header, state: Mapping[str, Tensor], unread: tuple[str, ...]) -> Identity:
    config = autoencoder_config_of(state)
    pruned = config["base_dim"] < 96
    facts = {"channels": config["z_dim"], "base_dim": config["base_dim"], "numbers": header.numbers}
    then = f"rollforce render {PROMPT} --model FOLDER --decoder {quote(str(path))}" if pruned and _known(path) else ""
    return Identity(path, "autoencoder", "the Wan autoencoder" + (", pruned" if pruned else ""), _format(header), WAN,
                    facts=facts, needs=("a student: it is one part of a base, for convert --base FOLDER",),
                    obstacles=unread, then=then)  # fmt: skip


def _known(path: Path) -> bool:
    try:
        return find_decoder(path).pruned
    except CheckpointError:
        return False


def _text(path: Path, header: Header, state: Mapping[str, Tensor], unread: tuple[str, ...]) -> Identity:
    part = text_part(path, state, {"model_type": "umt5"})
    kind = part.family == "UMT5"
    found = unread if kind else ("Wan reads text with UMT5, and this is T5: its vectors mean something else.",)
    return Identity(path, "text", "a UMT5 text encoder" if kind else "a T5 text encoder", _format(header), part.family,
                    facts={"blocks": blocks_of_text(state), "width": part.text_width, "numbers": header.numbers},
                    needs=("its tokenizer, and a student: it is one part of a base, for convert --base FOLDER",),
                    obstacles=found)  # fmt: skip


def blocks_of_text(state: Mapping[str, Any]) -> int:
    """Count the blocks of a text encoder."""
    return len({name.split(".")[2] for name in state if name.startswith("encoder.block.")})


def _format(header: Header) -> str:
    inside = f", in {header.where!r}" if header.where else ""
    return {"pickle": f"a pickle of torch.save{inside}"}.get(header.format, header.format)


def _facts(part: Part | None) -> dict[str, Any]:
    if part is None:
        return {}
    return {"channels": part.channels, "blocks": part.blocks, "heads": part.heads, "width": part.width,
            "text_width": part.text_width, "size": part.size}  # fmt: skip
