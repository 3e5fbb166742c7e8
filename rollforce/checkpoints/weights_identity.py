"""What a file of weights is: a student, a teacher, one expert, a LoRA, an autoencoder, a decoder, a text encoder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote

from torch import Tensor

from rollforce.checkpoints.decoders import WAN, WAN_5B, find_decoder
from rollforce.checkpoints.headers import WeightHeader
from rollforce.checkpoints.identity import Identity, facts_of, render_with
from rollforce.checkpoints.obstacles import BASE, EXPERTS, of_transformer
from rollforce.checkpoints.origin import Causality, causality_of, origin_of
from rollforce.checkpoints.parts import experts_of, text_part, transformer_part
from rollforce.checkpoints.read import WHAT, Checkpoint, read_checkpoint
from rollforce.checkpoints.safetensors_folder import read_json
from rollforce.checkpoints.shapes import autoencoder_config_of, check_whole, config_of
from rollforce.errors import CheckpointError

ADAPTER = re.compile(r"\.(lora|dora|hada|lokr|oft)[._]|\.diff(_b|_m)?$|^lora_")
RESUME = ".resume.safetensors"  # behind the name of a video: what a stopped render goes on from
FULL = 96  # channels inside the Wan autoencoder; a pruned one has fewer
RESIDUAL = "decoder.upsamples.0.upsamples.0.residual.0.gamma"  # of the original Wan 2.2 autoencoder
ONE_PART = ("a student: it is one part of a base, for convert --base FOLDER",)


def identify_weights(path: Path, header: WeightHeader) -> Identity:
    """Say what a file of weights is. CheckpointError if its names are none that are known."""
    if "rollforce" in header.metadata:
        return _snapshot(path, header)
    if any(ADAPTER.search(name) for name in header.tensors):
        return _lora(path, header)
    if (found := header.ours()) is None:
        return _other(path, header)
    kind, state = found
    _, unread = _try(path)
    look = {"transformer": _transformer, "autoencoder": _autoencoder, "text": _text}[kind]
    try:
        return look(Identity(path, kind, "", _format(header), obstacles=unread), header, state)
    except CheckpointError as error:  # of what is measured
        raise CheckpointError(f"{path}: {error}") from error


def _try(path: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """What `convert` reads of a file, mapped and not loaded; or why it does not."""
    try:
        return read_checkpoint(path), ()
    except CheckpointError as error:
        return None, (str(error),)


def _format(header: WeightHeader) -> str:
    inside = f", in {header.where!r}" if header.where else ""
    return f"{header.format}{inside}"


def _snapshot(path: Path, header: WeightHeader) -> Identity:
    try:
        told = dict(json.loads(header.metadata["rollforce"]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is a snapshot whose header is damaged: {error}.") from error
    video = _video_of(path)
    facts = {name: told.get(name) for name in ("version", "prompt", "seed", "size", "model")}
    then = f"rollforce render --resume {quote(str(video))}" if video != path else ""
    needs = ("the model that made it: model.resume(rollforce.Snapshot.load(PATH))",)
    return Identity(path, "snapshot", "a snapshot of a stream", "safetensors", facts=facts, needs=needs, then=then)


def _video_of(snapshot: Path) -> Path:
    """Return the video beside which a render keeps this snapshot: `outputs.beside`, the other way round."""
    if (name := snapshot.name.removesuffix(RESUME)) == snapshot.name:
        return snapshot
    if name == "record":
        return snapshot.parent
    return snapshot.with_name(name if Path(name).suffix else f"{name}.mp4")


def _lora(path: Path, header: WeightHeader) -> Identity:
    ranks = {min(tensor.shape) for name, tensor in header.tensors.items()
             if re.search(r"lora[._](A|B|up|down)\b", name) and tensor.dim() > 1}  # fmt: skip
    origin, (checkpoint, unread) = origin_of(path), _try(path)
    modules = {name.split(".lora_")[0] for name in (checkpoint.state if checkpoint else header.tensors)}
    facts = {"modules": len(modules), "rank": max(ranks, default=0), "numbers": header.numbers}
    then = "" if unread else render_with("--model FOLDER --lora", path)
    return Identity(path, "lora", "a LoRA" if ranks else "an adapter", _format(header), WAN, licence=origin.licence,
                    licence_by=origin.licence_by, facts=facts, obstacles=unread, then=then,
                    needs=("the model that it was trained on: --model FOLDER",))  # fmt: skip


def _other(path: Path, header: WeightHeader) -> Identity:
    if RESIDUAL in header.tensors:
        reason = f"It is of {WAN_5B}, which works in patches and does not stream here. Take that of Wan 2.1."
        what = f"the autoencoder of {WAN_5B}"
        return Identity(path, "autoencoder", what, _format(header), WAN_5B, obstacles=(reason,))
    if "decoder.1.weight" in header.tensors:
        return _decoder(path, header)
    raise CheckpointError(f"{path} ({header.format}) is none of {', '.join(WHAT.values())}, a small decoder, a "
                          f"snapshot. Its first names: {', '.join(list(header.tensors)[:5])}.")  # fmt: skip


def _decoder(path: Path, header: WeightHeader) -> Identity:
    found = Identity(path, "decoder", "a small decoder in TAEHV's format", _format(header),
                     facts={"parameters": header.parameters, "numbers": header.numbers})  # fmt: skip
    try:
        known = find_decoder(path, header.tensors)
    except CheckpointError as error:
        return replace(found, obstacles=(str(error),))
    if known.family != WAN:
        reason = f"It draws the latents of {known.family}; streams here make those of {WAN}. Take taew2_1.pth."
        return replace(found, family=known.family, obstacles=(reason,))
    latents = "normalised" if known.normalised else "as the autoencoder makes them"
    return replace(found, family=WAN, facts={**found.facts, "latents": latents}, needs=("a Wan model: --model FOLDER",),
                   then=render_with("--model FOLDER --decoder", path))  # fmt: skip


def _transformer(found: Identity, header: WeightHeader, state: Mapping[str, Tensor]) -> Identity:
    path, config = found.path, read_json(found.path.parent / "config.json", {})
    origin, known = origin_of(path), causality_of(path, config, "text_embedding.0.weight" in header.tensors)
    part, expert = transformer_part(path, state, config), experts_of(path) > 1
    reasons = (*([EXPERTS] if expert else []), *of_transformer(replace(part, class_name="")), *found.obstacles)
    reasons = reasons or _not_whole(state, path.name)
    what = {True: "a causal student", False: "a bidirectional teacher", None: "a transformer"}[known.value]
    what = "one expert of Wan 2.2 A14B" if expert else f"{what} of {part.family or 'the shape of Wan'}"
    return replace(
        found, what=what, family=part.family, causal=known.value, causal_by=known.by, licence=origin.licence,
        licence_by=origin.licence_by, stream=origin.stream, stream_by=origin.release_by if origin.stream else "",
        facts=facts_of(part) | {"parameters": header.parameters, "numbers": header.numbers},
        config=config_of(state, part.heads) if part.heads and not reasons else {},
        needs=("autoencoder, text encoder and tokenizer of its base: --base",), obstacles=reasons,
        streams=not reasons and not _explicit(known),
        then="" if reasons else _convert(path, known, origin.stream))  # fmt: skip


def _not_whole(state: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    try:
        check_whole(state, name)
    except CheckpointError as error:
        return (str(error),)
    return ()


def _explicit(known: Causality) -> bool:
    """Whether `convert` wants to be told what it is."""
    return known.foreign or known.value is False


def _convert(path: Path, known: Causality, stream: str) -> str:
    extra = " --teacher" if _explicit(known) else "" if stream else " --stream PRESET"
    out = re.sub(r"[^\w-]", "-", path.stem)
    return f"rollforce convert {quote(str(path))} --base {BASE} --out {out}{extra}"


def _autoencoder(found: Identity, header: WeightHeader, state: Mapping[str, Tensor]) -> Identity:
    try:
        config = autoencoder_config_of(state)
    except CheckpointError as error:
        return replace(found, what="an autoencoder in Wan's names", obstacles=(str(error), *found.obstacles))
    facts = {"channels": config["z_dim"], "base_dim": config["base_dim"], "numbers": header.numbers}
    small = config["base_dim"] < FULL and found.path.name.startswith("lightvae")
    then = render_with("--model FOLDER --decoder", found.path) if small else ""
    what = "the Wan autoencoder, pruned" if small else "the Wan autoencoder"
    return replace(found, what=what, family=WAN, facts=facts, needs=ONE_PART, then=then)


def _text(found: Identity, header: WeightHeader, state: Mapping[str, Tensor]) -> Identity:
    part = text_part(found.path, state, {"model_type": "umt5"})
    wrong = ("Wan reads text with UMT5, and this is T5: its vectors mean something else.",)
    facts = {"blocks": part.blocks, "width": part.text_width, "numbers": header.numbers}
    return replace(found, what=f"a {part.family.upper()} text encoder", family=part.family, facts=facts,
                   needs=("its tokenizer", *ONE_PART),
                   obstacles=found.obstacles if part.family == "UMT5" else wrong)  # fmt: skip
