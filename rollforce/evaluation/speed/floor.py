"""The floor under a chunk: its matrix products and attention calls, counted, run bare, and at this device's rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rollforce.engine.budget.model_sizes import ModelSizes, WanDecoding
from rollforce.engine.budget.requirements import MemoryPart, MemorySetup, parts
from rollforce.engine.dry_run import trace
from rollforce.evaluation.speed import clock
from rollforce.evaluation.speed.cases import Case, Setting
from rollforce.models.transformer.attention import Kernel, KVShape
from rollforce.models.transformer.transformer import HALVES, VideoTransformer

COPIES = 8  # of a weight matrix: more than any cache holds, so that it comes from memory as in the model
INPUTS = 2  # of what is multiplied with it


@dataclass(frozen=True)
class MatmulCall:
    """A linear layer (rows, inside, outside) or an attention call (heads, queries, keys, head width)."""

    kind: str
    sizes: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition counting two."""
        return (4 if self.kind == "attention" else 2) * math.prod(self.sizes)


def flops(calls: list[MatmulCall]) -> dict[str, int]:
    """Return the operations of each kind."""
    return {kind: sum(call.flops for call in calls if call.kind == kind) for kind in ("linear", "attention")}


@contextmanager
def record_calls(model: VideoTransformer) -> Iterator[list[MatmulCall]]:
    """Within it, the list grows by every linear layer and attention call that the model makes."""
    calls: list[MatmulCall] = []
    attend, halves = model.attend, model.halves

    def watched(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        calls.append(MatmulCall("attention", (q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3])))
        return attend(q, k, v, mask)

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        rows = inputs[0].numel() // inputs[0].shape[-1]
        calls.append(MatmulCall("linear", (rows, module.in_features, module.out_features)))

    handles = [part.register_forward_pre_hook(watch) for part in model.modules() if isinstance(part, nn.Linear)]
    model.attend, model.halves = watched, HALVES  # hooks see eager modules only; shapes are the same
    try:
        yield calls
    finally:
        model.attend, model.halves = attend, halves
        for handle in handles:
            handle.remove()


class BareReplay:
    """Replays recorded calls on random tensors, and nothing but them."""

    def __init__(self, calls: list[MatmulCall], attend: Kernel, dtype: torch.dtype, device: torch.device) -> None:
        self._attend, self._dtype, self._device = attend, dtype, device
        self._pools: dict[tuple[int, ...], list[Tensor]] = {}
        self._turn = 0
        self.parts = {kind: [call for call in calls if call.kind == kind] for kind in ("linear", "attention")}
        self.last = {"linear": 0.0, "attention": 0.0}

    def time(self) -> float:
        """Return the seconds for all calls; those of each kind are in `last`."""
        for kind, calls in self.parts.items():
            prepared = [self._prepared(call) for call in calls]
            self.last[kind] = clock.time_call(lambda work=prepared: [call() for call in work], self._device)  # type: ignore[misc]
        return sum(self.last.values())

    def shares(self, ours: float) -> dict[str, float]:
        """Return the shares of our time that the bare parts take; the rest is norms, RoPE, memory and Python."""
        shares = {kind: round(time / ours, 3) for kind, time in self.last.items()}
        return shares | {"rest": round(1 - sum(shares.values()), 3)}

    def _prepared(self, call: MatmulCall) -> Callable[[], Tensor]:
        if call.kind == "linear":
            rows, inside, outside = call.sizes
            x, weight = self._tensor(INPUTS, rows, inside), self._tensor(COPIES, outside, inside)
            bias = self._tensor(COPIES, outside)
            return lambda: F.linear(x, weight, bias)
        heads, queries, keys, width = call.sizes
        q, k, v = (self._tensor(INPUTS, 1, heads, length, width) for length in (queries, keys, keys))
        return lambda: self._attend(q, k, v, None)

    def _tensor(self, copies: int, *size: int) -> Tensor:
        """Return a random tensor, one of several of this size in turn."""
        pool = self._pools.setdefault(size, [])
        if len(pool) < copies:
            pool.append(torch.randn(size, dtype=self._dtype, device=self._device))
            return pool[-1]
        self._turn += 1
        return pool[self._turn % len(pool)]


def measure_matmul_rate(dtype: torch.dtype, device: torch.device, side: int | None = None) -> float:
    """Return the operations per second of a large square matrix product on this device."""
    side = side or (8192 if device.type == "cuda" else 512)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / clock.median_seconds(lambda: a @ b, device)


def measure_attention_rate(calls: list[MatmulCall], attend: Kernel, dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of the largest attention call of a chunk, with the model's kernel."""
    largest = max((call for call in calls if call.kind == "attention"), key=lambda call: call.flops)
    work = BareReplay([largest], attend, dtype, device)._prepared(largest)
    return largest.flops / clock.median_seconds(work, device)


# -- what a case would take, from sizes and from what its calls see, without running it --------------------------------

def count_operations(case: Case, setting: Setting) -> dict[str, int]:
    """Return the operations of the linear layers and attention calls of one chunk, once the memory is full."""
    config, layout = setting.config, case.stream.layout.build()
    width, tokens = config.width, setting.grid.tokens_per_latent
    calls = _calls(case)
    latents = sum(own for own, _ in calls)
    block = 6 * width**2 + 2 * width * config.ffn_dim  # keys and values of the text are there already
    ends = width * config.out_channels * config.patch**2
    time = width * (config.freq_dim + 7 * width)
    pairs = sum(own * seen for own, seen in calls) * tokens**2 + latents * tokens * setting.text
    assert latents == layout.slots * layout.ticks + layout.shift
    return {"linear": 2 * (latents * tokens * (config.num_layers * block + ends) + latents * time),
            "attention": 4 * pairs * width * config.num_layers}  # fmt: skip


def estimate_memory(case: Case, setting: Setting) -> tuple[MemoryPart, ...]:
    """Return the bytes of every part; no text encoder, for texts are random too."""
    sizes = ModelSizes(case.name, setting.config, WanDecoding(), 0, setting.text, case.name)
    return parts(MemorySetup(sizes, case.stream, setting.size, setting.dtype, setting.device,
                             quantize=setting.quantize))  # fmt: skip


def _calls(case: Case) -> list[tuple[int, int]]:
    """Return (own latents, latents seen with them) of a chunk's attention groups, once the memory is full."""
    layout, capacity = case.stream.layout.build(), sum(tier.latents for tier in case.stream.cache)
    chunks = capacity // layout.shift + layout.slots // layout.shift + 2
    calls = list(islice(trace(case.stream, KVShape(1, 1, 1, 1, 2)), chunks * layout.ticks))[-layout.ticks :]
    return [(len(look.sigma), look.attended) for call in calls for look in call.groups]
