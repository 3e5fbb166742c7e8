"""Tensors that are read, or decoded, each time they are used: a model of codes is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class LazyTensor(Tensor):
    """A tensor whose numbers are made by `read` whenever an operation needs them; shape and dtype cost nothing.

    `enough`: the dtype in which they are worth storing, which may be smaller than that in which they are exact."""

    read: Callable[[], Tensor]
    enough: torch.dtype

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor],
                enough: torch.dtype | None = None) -> LazyTensor:  # fmt: skip
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        made.read, made.enough = read, enough or dtype
        return made  # type: ignore[no-any-return, unused-ignore]

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override, unused-ignore]
        return f"LazyTensor({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (),  # type: ignore[override, unused-ignore]
                           kwargs: Any = None) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and torch.device(kwargs.get("device") or "cpu").type == "meta":
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="meta")
        return func(*tree_map(read_out, args), **tree_map(read_out, kwargs))


def read_out(value: Any) -> Any:
    """Return the numbers of a LazyTensor as a plain tensor; anything else as it is."""
    return value.read() if isinstance(value, LazyTensor) else value


def read_all(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of plain tensors, all in memory: what a module can take over."""
    return {name: read_out(tensor) for name, tensor in state.items()}


def storing_dtype(tensor: Tensor, dtype: torch.dtype | None = None) -> torch.dtype:
    """Return the dtype to store a tensor in: `dtype`, else its own, else what is enough for decoded numbers."""
    return dtype or (tensor.enough if isinstance(tensor, LazyTensor) else tensor.dtype)
