"""Which heads look far back: attention of a model's own streams, measured, as labels for head groups (Forcing-KV).

Of each head, the share of attention that goes to what is near: a head with a large share needs no more than that. The
paper profiles its students offline and ships labels per checkpoint; so does this, for any model (infer/heads.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import reduce
from torch import Tensor

from rollforce.cache.head_groups import Labels
from rollforce.cache.kv_cache import CacheView, CallMemory, KVCache, LatentGroup
from rollforce.cache.policies import Sink, Window
from rollforce.cache.region import Weights
from rollforce.cache.visibility import Visibility
from rollforce.engine.flow import Noise
from rollforce.engine.rollout import Rollout
from rollforce.errors import ConfigError
from rollforce.models.transformer.attention import Kernel, KVBlock, KVShape
from rollforce.streaming.bundle import ModelBundle, compute_on

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profile:
    """What is measured, in latents, and which heads count as near.

    `reach`: what a measured call attends to, its own latents included; `first`: the oldest of it, which do not count,
    for every head keeps a sink; `recent`: the newest of the past, near as the call's own are. A head is `near` if it
    has at least `threshold` of its attention beyond the first there. The paper's last 4 of 21 are a call's own 3 and 1.
    `plain`: lowest layers whose heads are all `near`, as the release has its layer 0.

    Deviations: the mean goes over all noise levels and all calls that reach so far; a layout that has more latents in
    flight than a chunk counts them all as near, since every group of heads sees them."""

    reach: int = 21
    first: int = 3
    recent: int = 1
    threshold: float = 0.8
    plain: int = 1
    near: str = "static"
    far: str = "dynamic"


class ProfilingCache(KVCache):
    """A KVCache that sums up where the queries of full denoising calls look: [layers, heads], near and in all."""

    def __init__(self, profile: Profile, shape: KVShape, flight: int, dtype: torch.dtype, device: torch.device) -> None:
        room = profile.reach - profile.first - flight
        if room <= profile.recent:
            raise ConfigError(f"reach {profile.reach} leaves no past beside {flight} latents in flight: "
                              f"use at least {profile.first + profile.recent + flight + 1}.")  # fmt: skip
        super().__init__((Sink(profile.first), Window(room)), shape, flight, dtype, device)
        self.profile, self.calls = profile, 0
        self.near, self.all = (torch.zeros(shape.layers, shape.of(0, 1)[1], dtype=torch.float64) for _ in range(2))

    def memory(self, groups: Sequence[LatentGroup], weights: Weights | None = None) -> CallMemory:
        return _ProfilingMemory(self, groups, weights)

    def look(self, layer: int, group: LatentGroup, view: CacheView, query: Tensor, key: Tensor) -> None:
        """Add up one layer of a call, if it reaches as far as is asked for. `key`: the slots of `view`, and its own."""
        profile, tokens = self.profile, self.shape.tokens
        if group.commit or len(view.slots) + group.latents != profile.reach:
            return
        order = sorted(range(len(view.slots)), key=lambda place: view.latents[place][1])
        counted = torch.ones(profile.reach, dtype=torch.bool, device=key.device)
        counted[order[: profile.first]] = False
        near = counted.clone()
        near[order[: len(order) - profile.recent]] = False
        for head in range(query.shape[1]):
            logits = query[:, head].float() @ key[:, head].float().mT / query.shape[-1] ** 0.5
            mass = reduce(logits.softmax(-1), "b q (latents tokens) -> latents", "sum", tokens=tokens)
            self.near[layer, head] += float(mass[near].sum())
            self.all[layer, head] += float(mass[counted].sum())
        self.calls += layer == 0


class _ProfilingMemory(CallMemory):
    cache: ProfilingCache

    def attend_group(self, layer: int, group: LatentGroup, view: CacheView, query: Tensor, own: KVBlock,
                     attend: Kernel) -> Tensor:  # fmt: skip
        def look_and_attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            self.cache.look(layer, group, view, q, k)
            return attend(q, k, v, mask)

        return super().attend_group(layer, group, view, query, own, look_and_attend)


@torch.no_grad()
def measure_near_shares(model: ModelBundle, prompts: Sequence[str], seconds: float,
                        profile: Profile | None = None) -> Tensor:  # fmt: skip
    """Return each head's share of attention that stays near, [layers, heads], over streams of a loaded model.
    ConfigError if they are too short to look back so far."""
    profile, settings, grid = profile or Profile(), model.stream_settings, model.grid()
    layout, config = settings.layout.build(), model.transformer.config
    stepping = replace(settings.stepping, denoise=Visibility(), commit=Visibility())
    count = -(-round(seconds * model.fps) // model.frames_per_latent)
    near = everything = torch.zeros(config.num_layers, config.num_attention_heads, dtype=torch.float64)
    for seed, prompt in enumerate(prompts):
        model.check_prompt(prompt)
        cache = ProfilingCache(profile, config.shape(grid), max(layout.slots, layout.shift), model.dtype, model.device)
        noise = Noise.of(seed, (grid.channels, grid.height, grid.width))
        with compute_on(model.threads):
            condition = model.transformer.condition(model.text.encode([prompt]).to(model.device, model.dtype))
            rollout = Rollout(model.transformer, condition, cache, layout, noise, stepping)
            next(commit for commit in rollout.commits() if commit.stop >= count)
        if not cache.calls:
            raise ConfigError(f"seconds {seconds:g} are too few for a call to look back {profile.reach} latents.")
        log.info("%r: %d calls measured", prompt, cache.calls)
        near, everything = near + cache.near, everything + cache.all
    return near / everything


def label_heads(shares: Tensor, profile: Profile) -> Labels:
    """Return the label of each head: `near` from `threshold` on, and in the `plain` lowest layers."""
    return tuple(tuple(profile.near if layer < profile.plain or share >= profile.threshold else profile.far
                       for share in row) for layer, row in enumerate(shares.tolist()))  # fmt: skip
