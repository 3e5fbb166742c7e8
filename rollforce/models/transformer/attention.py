"""One door to attention kernels, and the masks of teacher forcing and diffusion forcing.

`sdpa` runs everywhere and is the default. The others are chosen by name; whether one can be used on this machine is
found out when it is chosen, by trying it, and not in the middle of a stream.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rollforce.errors import ConfigError


@dataclass(frozen=True)
class KVShape:
    """Sizes of a memory: one slot is one latent of `tokens` keys for `heads` heads of `width` channels.

    `heads`: of every layer, or of each (head groups differ between layers). `columns`: tokens of a row of the picture;
    0 where nobody asks."""

    layers: int
    batch: int
    heads: int | tuple[int, ...]
    tokens: int
    width: int
    columns: int = 0

    def of(self, layer: int, tokens: int) -> tuple[int, int, int, int]:
        """Return the shape of `tokens` keys of a layer: [B, N, L, K]."""
        return self.batch, self.heads if isinstance(self.heads, int) else self.heads[layer], tokens, self.width


@dataclass(frozen=True)
class KVBlock:
    """Keys (rotated at their own index) and values of consecutive latents: each [B, N, L, K], L = latents x tokens."""

    key: Tensor
    value: Tensor

    def latents(self, start: int, stop: int, tokens: int) -> KVBlock:
        part = slice(start * tokens, stop * tokens)
        return KVBlock(self.key[:, :, part], self.value[:, :, part])


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""output [B, N, L, K] = kernel(query [B, N, L, K], key, value [B, N, L', K], mask), where the mask is None or added to
the logits and broadcasts to them, [B, N, L, L']: [L, L'] in training, [B, 1 or N, 1, L'] for a bias per key, and one
row for each query where sparse attention by hashing is exact."""


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Matmul, softmax, matmul: on CPUs its backward pass is about twice as fast as the fused kernel's."""
    logits = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]))
    return (logits if mask is None else logits + mask).softmax(dim=-1).to(v.dtype) @ v


def _cudnn() -> Kernel:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _flash(function: Callable[..., Any]) -> Kernel:
    """A function of the flash-attention family: tokens come before heads, and some return more than the output."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend


def _sage() -> Kernel:
    function = import_module("sageattention").sageattn
    return lambda q, k, v, mask: function(q, k, v, tensor_layout="HND", is_causal=False)


@dataclass(frozen=True)
class Backend:
    """A kernel for GPUs that knows no mask. `make` imports it; `package` is what must be installed, `get` how."""

    make: Callable[[], Kernel]
    package: str = ""
    get: str = ""
    capability: tuple[int, int] = (8, 0)


BACKENDS = {
    "flash": Backend(lambda: _flash(import_module("flash_attn").flash_attn_func), "flash_attn",
                     "flash-attn>=2.6.3: pip install flash-attn --no-build-isolation"),
    "flash3": Backend(lambda: _flash(import_module("flash_attn_interface").flash_attn_func), "flash_attn_interface",
                      "FlashAttention 3, built from the folder hopper/ of its repository", (9, 0)),
    "flash_hub": Backend(
        lambda: _flash(import_module("kernels").get_kernel("kernels-community/flash-attn2").flash_attn_func),
        "kernels", "the package kernels, which downloads a prebuilt kernel: pip install kernels"),
    "sage": Backend(_sage, "sageattention", "SageAttention: pip install sageattention"),
    "cudnn": Backend(_cudnn),
}  # fmt: skip
EVERYWHERE: dict[str, Kernel] = {"sdpa": _sdpa, "plain": _plain}
NAMES = (*EVERYWHERE, *BACKENDS)


def kernel(name: str, device: torch.device | None = None, dtype: torch.dtype = torch.bfloat16,
           masked: bool = False) -> Kernel:  # fmt: skip
    """Return the attention kernel called `name`, tried once on `device` (default: the first GPU) with `dtype`.

    `masked`: it must know masks. Raises ConfigError with the remedy if there is none of that name, its package is
    missing, or this device or dtype is not for it."""
    if name in EVERYWHERE:
        return EVERYWHERE[name]
    if name not in BACKENDS:
        raise ConfigError(f"attention {name!r} is not known. Use one of: {', '.join(NAMES)}.")
    if masked:
        raise ConfigError(f"attention {name!r} knows no mask. Use one of: {', '.join(EVERYWHERE)}.")
    backend = BACKENDS[name]
    if reason := _obstacle(backend, device, dtype):
        raise ConfigError(f"attention {name!r} {reason} 'sdpa' works now.")
    try:
        attend = backend.make()
        _try(attend, device, dtype)
    except (ImportError, AttributeError, OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        short = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"attention {name!r} does not run here ({short}). 'sdpa' works now.") from error
    return _maskless(name, attend)


def available(device: torch.device | None = None, dtype: torch.dtype = torch.bfloat16) -> dict[str, str]:
    """Return, for every kernel, why `device` (default: the first GPU) cannot run it, or "". Downloads nothing."""
    reasons = dict.fromkeys(EVERYWHERE, "")
    for name in BACKENDS:
        reasons[name] = _obstacle(BACKENDS[name], device, dtype)
        if name != "flash_hub" and not reasons[name]:
            try:
                kernel(name, device, dtype)
            except ConfigError as error:
                reasons[name] = str(error)
    return reasons


def _obstacle(backend: Backend, device: torch.device | None, dtype: torch.dtype) -> str:
    """Why a backend cannot be used, as far as one can tell without importing it; "" if nothing stands against it."""
    if backend.package and importlib.util.find_spec(backend.package) is None:
        return f"needs {backend.get}; it is not installed."
    kind = device.type if device is not None else "cuda"
    if kind != "cuda" or not torch.cuda.is_available():
        return f"needs an NVIDIA GPU; this is {'the CPU' if device is None else device}."
    major, minor = backend.capability
    if torch.cuda.get_device_capability(device) < backend.capability:
        return f"needs a GPU of sm_{major}{minor} or later; this is a {torch.cuda.get_device_name(device)}."
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs bfloat16 or float16; the weights are {str(dtype).removeprefix('torch.')}."
    return ""


def _try(attend: Kernel, device: torch.device | None, dtype: torch.dtype) -> None:
    """One small call: being installed does not mean being able to run."""
    q = torch.zeros(1, 2, 128, 128, device=device or "cuda", dtype=dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shape = attend(q, q[:, :, :64], q[:, :, :64], None).shape
    if shape != q.shape:
        raise ValueError(f"it returned {tuple(shape)} instead of {tuple(q.shape)}")


def _maskless(name: str, attend: Kernel) -> Kernel:
    def checked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            raise ConfigError(f"attention {name!r} knows no mask. Use one of: {', '.join(EVERYWHERE)}.")
        return attend(q, k, v, None)

    return checked
