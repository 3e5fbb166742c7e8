"""A transformer's folder, as diffusers lays it out: config.json beside safetensors, whole or in shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from rollforce.checkpoints.comfy_quant import is_scaled
from rollforce.checkpoints.containers import tensors_of
from rollforce.checkpoints.names import NEVER_USED
from rollforce.checkpoints.safetensors_folder import (
    LIMIT,
    STEM,
    find_weights,
    read_json,
    read_safetensors,
    shards_of,
    write_json,  # fmt: skip
    write_shards,
)
from rollforce.checkpoints.shapes import same_shape
from rollforce.checkpoints.unread import refuse_quantised
from rollforce.checkpoints.weight_file import read_files
from rollforce.errors import CheckpointError, ConfigError

CLASS = "WanTransformer3DModel"
CAUSAL_CLASSES = {"CausalWanTransformer3DModel"}  # FastVideo's, with the same names of weights
WEIGHTS = f"{STEM['transformer']}.safetensors"
INDEX = f"{WEIGHTS}.index.json"

# Settings of diffusers' class that there is no choice in here, and what they must be.
BUILT: dict[str, Any] = {"cross_attn_norm": True, "qk_norm": "rms_norm_across_heads", "pos_embed_seq_len": None,
                         "window_size": [-1, -1], "add_img_emb": False}  # fmt: skip
FREE = {"rope_max_seq_len"}  # length of a table that rope.py does without
STREAMED = {"local_attn_size", "sink_size", "num_frames_per_block", "num_frame_per_block", "sliding_window_num_frames",
            "independent_first_frame"}
"""Settings of FastVideo's class that a stream preset says here."""


def read_config(folder: Path, known: set[str]) -> dict[str, Any]:
    """Return the fields of a folder's config.json that are in `known`. CheckpointError if it describes no Wan
    transformer; ConfigError names a field that asks for something else."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no transformer: config.json is missing.")
    raw = read_json(path)
    if (kind := raw.get("_class_name", CLASS)) != CLASS and kind not in CAUSAL_CLASSES:
        raise CheckpointError(f"{path} describes a {kind}, not a {CLASS}. Original Wan files: rollforce convert.")
    for name, value in raw.items():
        if name in known or name in FREE or name.startswith("_") or (kind != CLASS and name in STREAMED):
            continue
        if name not in BUILT:
            raise ConfigError(f"{path}: {name} = {value!r} is not a setting of this transformer.")
        if value != BUILT[name]:
            raise ConfigError(f"{path}: {name} = {value!r} is not built here; only {BUILT[name]!r} is.")
    fields = {name: value for name, value in raw.items() if name in known}
    if fields.get("out_channels", 0) is None:  # diffusers: as many as come in
        fields["out_channels"] = fields.get("in_channels", 16)
    return fields


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder in their own dtype, mapped from its files: nothing is read before it is used."""
    first = find_weights(folder, STEM["transformer"])
    if first is None:
        raise CheckpointError(f"{folder} holds no weights: neither {WEIGHTS} nor its index is there.")
    state = tensors_of(read_files(shards_of(first)).content)
    refuse_quantised(state, str(folder))
    if is_scaled(state):
        raise CheckpointError(f"{folder} holds ComfyUI's codes: `rollforce convert` makes a model folder with bfloat16 "
                              "of them.")  # fmt: skip
    return {name: tensor for name, tensor in state.items() if not NEVER_USED.fullmatch(name)}


def write_folder(folder: Path, fields: Mapping[str, Any], state: Mapping[str, Tensor], limit: int = LIMIT) -> None:
    """Write config.json, from which diffusers builds the same transformer, and safetensors of at most `limit` bytes."""
    built = {name: BUILT[name] for name in ("cross_attn_norm", "qk_norm", "pos_embed_seq_len")}
    write_json({"_class_name": CLASS, **fields, **built}, folder / "config.json")
    (folder / INDEX).unlink(missing_ok=True)  # an older one would be believed
    write_shards(state, folder, STEM["transformer"], limit=limit)


def adopt(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Make the tensors of `state` themselves, uncopied, those of `model`. CheckpointError says why they do not fit."""
    same_shape(state, model, source)
    model.load_state_dict(state, strict=True, assign=True)


M = TypeVar("M", bound=nn.Module)


def save_module(module: nn.Module, config: Any, folder: str | Path) -> None:
    """Write `config`, a dataclass, and the weights of `module` into `folder`, which is made if it is missing."""
    write_json(asdict(config), Path(folder) / "config.json")
    from safetensors.torch import save_file

    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, Path(folder) / "model.safetensors")


def load_module(module: Callable[[Any], M], config: Callable[..., Any], folder: str | Path, what: str) -> M:
    """Read what `save_module` wrote into `module(config(...))`, as float32, in eval mode. CheckpointError, which names
    it as `what`, if it is missing or does not fit."""
    folder = Path(folder)
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        raise CheckpointError(f"no {what} in {folder}: {missing[0]} is missing")
    try:
        settings, weights = config(**read_json(folder / "config.json")), read_safetensors(folder / "model.safetensors")
    except TypeError as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe the {what}: {error}") from error
    loaded = module(settings)
    try:
        loaded.load_state_dict({k: v.float() for k, v in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{folder / 'model.safetensors'} does not fit its config.json: {error}") from error
    return loaded.eval()
