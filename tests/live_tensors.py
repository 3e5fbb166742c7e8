"""The most bytes of tensors that were alive at once: measured by watching every operation, on the CPU or on meta."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """`with LiveTensors() as live: ...` then `live.peak`: bytes beyond what was alive before (`held` adds to that)."""

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0
        self.before = [tensor.untyped_storage() for tensor in held]
        self.known.update(id(storage) for storage in self.before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for part in tree_leaves((args, kwargs)):  # what an operation is given and was not made here is not ours
            if isinstance(part, torch.Tensor) and id(part.untyped_storage()) not in self.known:
                self.meet(part.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor) and id(part.untyped_storage()) not in self.known:
                self.meet(part.untyped_storage(), part.untyped_storage().nbytes())
        return result

    def meet(self, storage: torch.UntypedStorage, size: int) -> None:
        name = id(storage)
        self.known.add(name)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, name, size)

    def forget(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size
