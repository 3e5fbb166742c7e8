"""Copy on write: a second life for what a stream has computed, for the price of a list of names."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

from torch import Tensor, nn

T = TypeVar("T")


def forked(value: T) -> T:
    """The same again, free to go its own way.

    Tensors are shared until one of the two writes (torch's copy-on-write storage); lists, dicts and whatever has a
    `state_dict` (memory, regions, decoders) are made anew around them; modules and frozen settings belong to both."""
    return cast(T, _forked(value))


def _forked(value: object) -> object:
    if isinstance(value, nn.Module | nn.Parameter | nn.ParameterDict):
        return value
    if isinstance(value, Tensor):
        return _twin(value)
    if isinstance(value, dict):
        return {name: _forked(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_forked(part) for part in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_forked(part) for part in value)
    if hasattr(value, "state_dict"):
        twin = copy.copy(value)
        twin.__dict__.update({name: _forked(part) for name, part in vars(value).items()})
        return twin
    return value


def _twin(x: Tensor) -> Tensor:
    if x.device.type not in ("cpu", "cuda"):
        return x.clone()
    try:
        return x._lazy_clone()
    except RuntimeError:  # memory that is not torch's own: of NumPy, of a mapped file
        return x.clone()
