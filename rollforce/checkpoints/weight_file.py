"""One file of weights, or the shards of one, as what it is: known by its first bytes, whatever its name says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollforce.checkpoints.gguf import MAGIC, read_gguf
from rollforce.checkpoints.pickles import SUFFIXES, read_pickle
from rollforce.checkpoints.safetensors_folder import check_shards, metadata_of, read_safetensors
from rollforce.errors import CheckpointError, stand_in


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: tensors by name, for a pickle inside any containers; its format in words; the words that
    safetensors carry beside their tensors."""

    content: Any
    format: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def pickled(self) -> bool:
        return self.format == PICKLE


PICKLE = "a pickle of torch.save"


def read_files(paths: list[Path]) -> WeightFile:
    """Read the files that belong together, tensors memory-mapped. CheckpointError if one is missing or damaged."""
    check_shards(paths)
    found = [read_file(path) for path in paths]
    if len(found) == 1:
        return found[0]
    if strange := [path.name for path, each in zip(paths, found, strict=True) if not isinstance(each.content, Mapping)]:
        raise CheckpointError(f"{strange[0]} holds no state dict, and it is one of {len(paths)} shards.")
    content = {key: value for each in found for key, value in each.content.items()}
    return WeightFile(content, found[0].format, {key: word for each in found for key, word in each.metadata.items()})


def read_file(path: Path) -> WeightFile:
    """Read one file. CheckpointError if it is damaged, or none of safetensors, a pickle and GGUF."""
    kind = _kind(path)
    if kind == "gguf":
        return WeightFile(*read_gguf(path))
    if kind == "pickle":
        return WeightFile(read_pickle(path), PICKLE)
    if kind == "safetensors":
        return WeightFile(read_safetensors(path), "safetensors", metadata_of(path))
    raise CheckpointError(stand_in(path) or f"{path.name}: weights are read from .safetensors, .gguf, "
                          f"{', '.join(sorted(SUFFIXES))} and folders of them.")  # fmt: skip


def _kind(path: Path) -> str:
    """What the first bytes say, else what the name says; "" if neither does."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if head.startswith(MAGIC) or path.suffix == ".gguf":
        return "gguf"
    if head.startswith((b"PK\x03\x04", b"\x80")) and path.suffix != ".safetensors":
        return "pickle"
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    return "pickle" if path.suffix in SUFFIXES else ""
