"""Folders of torch.distributed.checkpoint (.metadata and *.distcp), read one tensor at a time, whenever it is used.

torch unpickles .metadata with all that a pickle may run; here it may name the classes that describe tensors, no others.
"""

from __future__ import annotations

import io
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollforce.checkpoints.lazy_tensor import LazyTensor
from rollforce.checkpoints.pickles import DAMAGE
from rollforce.checkpoints.weight_file import WeightFile
from rollforce.errors import CheckpointError, stand_in

METADATA = ".metadata"
DESCRIBING = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or name in DESCRIBING.get(module, ()):
            return super().find_class(module, name)
        raise CheckpointError(f"{METADATA} names {module}.{name}, which describes no tensor. Refusing: it could run "
                              "code.")  # fmt: skip


def read_distributed(folder: Path) -> WeightFile:
    """Return the tensors of a folder by their flat names ("model.blocks.0..."), without what else was saved.

    CheckpointError if its .metadata is damaged or names what describes no tensor, or a file of it is missing."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    path = folder / METADATA
    try:
        described = _Unpickler(io.BytesIO(path.read_bytes())).load()
        told = {str(name): (tuple(each.size), each.properties.dtype) for name, each in
                described.state_dict_metadata.items() if isinstance(each, TensorStorageMetadata)}  # fmt: skip
        files = {str(each.relative_path) for each in described.storage_data.values()}
    except DAMAGE as error:
        raise CheckpointError(stand_in(path) or f"{path} is damaged, or is not what torch.distributed.checkpoint "
                              f"wrote: {error}") from error  # fmt: skip
    if absent := sorted(name for name in files if not (folder / name).is_file()):
        raise CheckpointError(f"{len(absent)} of {len(files)} files are missing in {folder}: {', '.join(absent[:5])}. "
                              "Copy the whole folder again.")  # fmt: skip
    content = {name: LazyTensor(shape, dtype, partial(_load, folder, described, name, shape, dtype))
               for name, (shape, dtype) in told.items()}  # fmt: skip
    return WeightFile(content, "a folder of torch.distributed.checkpoint")


def _load(folder: Path, described: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        """A reader that has unpickled the metadata already, in its own way."""

        def read_metadata(self, *_: Any, **__: Any) -> Any:
            return described

    wanted = {name: torch.empty(shape, dtype=dtype)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that one process reads
            load(wanted, storage_reader=Reader(folder), no_dist=True)
    except (*DAMAGE, CheckpointException) as error:
        raise CheckpointError(f"{folder} is damaged or not complete: {name} cannot be read: {error}") from error
    return wanted[name]
