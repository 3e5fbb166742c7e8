"""LinearMemory: all that left the window, as two running means per head (Hybrid Forcing, section on its linear temporal
memory), read by linear attention and added to the output of softmax attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rollforce.cache.commit_plan import Candidates, Role
from rollforce.cache.region import Evicted, LayerCommit, Query
from rollforce.errors import ConfigError
from rollforce.models.transformer import rope
from rollforce.models.transformer.attention import KVShape

EPS = 1e-6


@dataclass(frozen=True)
class LinearMemory:
    """Takes what falls out of a window, in a state whose size never changes; a sink before it is not absorbed.

        key mean   mean of relu(k)                          k, q before RoPE, v values, means over all tokens that fell
        kv         mean of rope(relu(k))' v
        added      proj( rope(relu(q)) kv / (relu(q) key mean + eps) )

    `proj` is learned, one matrix per layer, zero before training: until then nothing is added. Each latent stands for
    ever where it stood from the next call when it left (the release: 6 latents before a chunk of 3 behind a window of
    3), so history is a bag without an order.

    The formula is that of training. The release infers with rope(k) and rope(q) in the numerator, not rectified:
    `compat`. It also absorbs its sink, and turns that twice; here the sink stays out. Keys come turned, so they are
    turned back in all three axes; a phase of RoPE (shots) is not known here and is taken for a part of the key."""

    compat: bool = False
    kind: Literal["linear_memory"] = "linear_memory"
    role: ClassVar[Role] = "past"

    @property
    def latents(self) -> int:
        """None is kept as it is."""
        return 0

    def keep(self, held: Candidates) -> tuple[int, ...]:
        """Keep none: what falls is summed."""
        return ()

    def weights(self, layers: int, width: int) -> tuple[int, ...]:
        """Return the shape of `proj`: one of every layer, shared by its heads."""
        return layers, width, width

    def region(self, shape: KVShape, dtype: torch.dtype, device: torch.device | str) -> LinearState:
        """Return an empty state. ConfigError if it is not known how many tokens a row of the picture has."""
        if not shape.columns and shape.tokens > 1:
            raise ConfigError("linear_memory turns keys back in space: this cache's Shape must say its `columns`.")
        return LinearState(shape, device, self.compat)


class LinearState:
    """The Region of a LinearMemory: float32, per layer [B, N, K] and [B, N, K, K]."""

    def __init__(self, shape: KVShape, device: torch.device | str, compat: bool) -> None:
        self.shape, self.compat = shape, compat
        sizes = [shape.of(layer, 1) for layer in range(shape.layers)]
        self.key_mean = [torch.zeros(b, n, k, device=device) for b, n, _, k in sizes]
        self.kv = [torch.zeros(b, n, k, k, device=device) for b, n, _, k in sizes]
        self.count = [0] * shape.layers  # tokens that fell

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.key_mean, *self.kv))

    def absorb(self, evicted: Evicted, commit: LayerCommit) -> None:
        """Absorb latents into the means, out of place: a backward pass may still want the old ones."""
        layer, following = commit.layer, commit.start + commit.own.key.shape[2] // self.shape.tokens
        places = torch.tensor(evicted.indices, device=evicted.block.key.device)
        bare, turned = self._features(evicted.block.key, places, following)
        count = bare.shape[2]
        self.count[layer] += count
        share = count / self.count[layer]
        self.key_mean[layer] = self.key_mean[layer].lerp(bare.mean(2), share)
        self.kv[layer] = self.kv[layer].lerp(turned.transpose(2, 3) @ evicted.block.value.float() / count, share)

    def addition(self, query: Query) -> Tensor | None:
        """Return what history says to these queries; None before anything fell or if no weights say how to read it."""
        layer, proj = query.layer, query.weights.get("linear_memory")
        if proj is None or not self.count[layer]:
            return None
        latents = query.vectors.shape[2] // self.shape.tokens
        places = torch.arange(query.start, query.start + latents, device=query.vectors.device)
        bare, turned = self._features(query.vectors, places, query.start)
        below = bare @ self.key_mean[layer][..., None] + EPS
        return turned @ self.kv[layer] / below @ proj[layer].float()

    def read(self, layer: int, placement: object) -> None:
        """Return None: there are no tokens to attend to."""
        return None

    def _features(self, x: Tensor, places: Tensor, zero: int) -> tuple[Tensor, Tensor]:
        """Return relu of what is turned at `places`, before RoPE, and turned to where it stands seen from `zero`."""
        x = x.float()
        cos, sin = self._angles(places, x.shape[-1])
        bare = rope.rotate(x, torch.stack([cos, -sin]))
        above = bare.relu()
        return above, rope.rotate(bare if self.compat else above, self._angles(places - zero, x.shape[-1]))

    def _angles(self, places: Tensor, width: int) -> Tensor:
        columns = self.shape.columns or self.shape.tokens
        return rope.angles(places, self.shape.tokens // columns, columns, width)

    def state_dict(self) -> dict[str, Any]:
        means = {name: [tensor.clone() for tensor in getattr(self, name)] for name in ("key_mean", "kv")}
        return means | {"count": list(self.count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        device = self.kv[0].device
        self.key_mean, self.kv = ([tensor.to(device, copy=True) for tensor in state[part]]
                                  for part in ("key_mean", "kv"))  # fmt: skip
        self.count = [int(count) for count in state["count"]]
