"""The files of a UMT5 encoder in a diffusers folder: which there are, what they hold, what tells them from others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rollforce.checkpoints.safetensors_folder import shards_of
from rollforce.checkpoints.shapes import same_shape
from rollforce.errors import CheckpointError

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
INDEX = "model.safetensors.index.json"
TIED = ("shared.weight", "encoder.embed_tokens.weight")  # two names of one table; files hold either or both
SAMPLES, SAMPLE = 16, 4096  # of each weight file: pieces and their bytes that go into the fingerprint
REMEDY = "A model folder in diffusers' layout holds text_encoder/ and tokenizer/; `rollforce convert` makes one."


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files. CheckpointError names what is missing."""
    where = folder / ENCODER
    if not (where / "config.json").is_file():
        raise CheckpointError(f"no text encoder in {folder}: {ENCODER}/config.json is missing. {REMEDY}")
    shards = shards_of(where / (INDEX if (where / INDEX).is_file() else INDEX.removesuffix(".index.json")))
    missing = [path.name for path in shards if not path.is_file()]
    if missing or not shards:
        what = ", ".join(missing) or "every weight file"
        raise CheckpointError(f"the text encoder in {where} is not whole: {what} missing. {REMEDY}")
    return shards


def sample(path: Path, digest: Any) -> None:
    """Hash header, size and a few pieces: the weights of a fine-tune differ in these, and reading them takes no
    time."""
    size = path.stat().st_size
    digest.update(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        digest.update(file.read(min(header, size)))
        for number in range(SAMPLES):
            file.seek(max(0, header + (size - header - SAMPLE) * number // max(1, SAMPLES - 1)))
            digest.update(file.read(SAMPLE))


def read_weights(
    files: Sequence[Path], network: nn.Module, device: torch.device, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Read all weights by name, on `device` in `dtype` (None: their own; those for the CPU are mapped, not read).

    CheckpointError if their names or sizes are not those of `network`."""
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                state |= {name: _cast(name, file.get_tensor(name), dtype) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): fetch it again.") from error
    for one, other in (TIED, TIED[::-1]):
        if one in state and other not in state:
            state[other] = state[one]
    same_shape(state, network, str(files[0].parent))
    return state


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The feed-forward's way out overflows in float16: UMT5 keeps it in float32."""
    dtype = dtype or tensor.dtype
    return tensor.to(torch.float32 if dtype == torch.float16 and name.endswith("wo.weight") else dtype)
