"""Weights from rewards: what `weight` of losses.dmd and losses.sid may be. Always detached.

    Re-DMD     Reward Forcing (2025): every video counts by exp(beta * its reward)
    Stream-R1  (2026): the same with a reward that wants its axes to improve together, times a map in space and time
               that is large where the reward still depends on the pixels

    rewards, map = saliency(reward, video, prompts)                    # one backward pass per axis
    level, history = balance(rewards, history)
    weight = reward_weight(level) * space_time_weight(rewards, map, (T, h, w))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rollforce.errors import ConfigError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.training.data import Data, WorldClips
from rollforce.training.recipes import RewardSettings
from rollforce.training.rewards import EyesReward, OracleReward, Reward, Shuffled

Rewards = Mapping[str, Tensor]  # axis -> [B]
FLAT = 1e-8  # a saliency that spans less than this says nothing: all ones


def reward_weight(reward_B: Tensor, beta: float = 2.0, mean_one: bool = False) -> Tensor:
    """Return exp(beta * reward), [B, 1, 1, 1, 1] (Re-DMD, loss = exp(beta r) * DMD).

    Rewards should lie in about -1..1 (a normalised score) or 0..1: at beta 2 the weights of two videos then differ by
    at most e^4 or e^2. A reward that is large everywhere is a larger learning rate; `mean_one` divides by the mean over
    the batch, so that only differences between its videos count (and nothing at all does in a batch of one).
    """
    weight = (beta * reward_B.detach().float()).exp()
    if mean_one:
        weight = weight / weight.mean()
    return weight[:, None, None, None, None]


# -------------------------------------------------------------------------------- between videos (Stream-R1)


@dataclass(frozen=True)
class History:
    """The rewards of the last steps: one row of axis means per step. Plain numbers, for the checkpoint."""

    window: int = 50
    warm_up: int = 50
    steps: int = 0
    rows: tuple[tuple[float, ...], ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Return the history as plain numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> History:
        """Return the history that `state_dict` described."""
        return cls(**{**state, "rows": tuple(tuple(row) for row in state["rows"])})

    def with_row(self, row: tuple[float, ...]) -> History:
        """Return the history with the axis means of one more step. ConfigError if the number of axes changed."""
        if self.rows and len(self.rows[0]) != len(row):
            raise ConfigError(f"the reward had {len(self.rows[0])} axes and now has {len(row)}: start a new history.")
        return History(self.window, self.warm_up, self.steps + 1, (*self.rows, row)[-self.window :])

    def unevenness(self) -> float:
        """Return the standard deviation over the axes of how much each rose: the newer half of the window against the
        older."""
        if self.steps < self.warm_up or len(self.rows) < 4 or len(self.rows[0]) < 2:
            return 0.0
        rows = torch.tensor(self.rows, dtype=torch.float64)
        half = len(rows) // 2
        return float((rows[half:].mean(0) - rows[:half].mean(0)).std())


def balance(rewards: Rewards, history: History, penalty: float = 0.5) -> tuple[Tensor, History]:
    """Return Stream-R1's inter-reliability, [B], the mean of the axes - penalty * how unevenly they improved; and the
    new history.

    The history takes the mean of the batch (the reference has batches of one; over several processes, pass rewards
    gathered from all of them, so that the histories agree).
    """
    stacked = torch.stack([rewards[axis].detach().float() for axis in sorted(rewards)])
    history = history.with_row(tuple(stacked.mean(1).tolist()))
    return stacked.mean(0) - penalty * history.unevenness(), history


# -------------------------------------------------------------------------------- inside a video (Stream-R1)


def saliency(reward: Reward, video_BFHWC: Tensor, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the rewards [B] of every axis, and |d reward / d pixel| [B, F, H, W] (L2 norm over the colour channels).

    The reward must be differentiable and judge each video by itself; an axis that does not depend on the pixels has a
    map of zeros. ConfigError if no axis has a gradient.
    """
    with torch.enable_grad():
        video = video_BFHWC.detach().requires_grad_()
        rewards = reward(video, prompts)
        axes = [axis for axis in rewards if rewards[axis].requires_grad]
        if not axes:
            raise ConfigError(f"no axis of the reward ({', '.join(rewards)}) has a gradient: a map in space and time "
                              "needs a differentiable reward, e.g. EyesReward.")
        maps = {axis: torch.zeros(video.shape[:-1], device=video.device) for axis in rewards}
        for axis in axes:
            (gradient,) = torch.autograd.grad(rewards[axis].sum(), video, retain_graph=axis != axes[-1])
            maps[axis] = gradient.float().norm(dim=-1)
    return {axis: value.detach() for axis, value in rewards.items()}, maps


def space_time_weight(
    rewards: Rewards,
    maps: Mapping[str, Tensor],
    latent: tuple[int, int, int],
    temperature: float = 1.0,
    floor_time: float = 0.2,
    floor_space: float = 0.15,
) -> Tensor:
    """Return Stream-R1's intra-perplexity, a map of weights [B, T, 1, h, w] with mean 1 for each video. `latent`: T, h,
    w.

    The saliencies of the axes are averaged with softmax(-reward / temperature), so that the weakest axis says most, and
    pooled to latents. The means of the latents become a profile in time, what is left a picture for each latent; each
    is brought to 0..1, held above its floor and divided by its mean.

    Deviations from the reference: per video (it has batches of one), and area pooling where it interpolates between
    the patches of its reward's network.
    """
    axes = sorted(rewards)
    share = (-torch.stack([rewards[axis].detach().float() for axis in axes]) / temperature).softmax(0)
    combined = sum(share[i, :, None, None, None] * maps[axis].float() for i, axis in enumerate(axes))
    assert isinstance(combined, Tensor)
    cells = F.adaptive_avg_pool3d(combined.detach()[:, None], latent)[:, 0]
    time = _normalised(cells.mean((2, 3)), (1,), floor_time)
    space = _normalised(cells, (2, 3), floor_space)
    weight = time[..., None, None] * space
    return (weight / weight.mean((1, 2, 3), keepdim=True))[:, :, None]


def _normalised(x: Tensor, dims: tuple[int, ...], floor: float) -> Tensor:
    """x brought to 0..1 over `dims` (ones where it is flat), not below `floor`, with mean 1."""
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    unit = torch.where(high - low > FLAT, (x - low) / (high - low).clamp_min(FLAT), torch.ones_like(x))
    unit = unit.clamp_min(floor)
    return unit / unit.mean(dims, keepdim=True)


class RewardWeighting:
    """Weights a student's loss by Re-DMD (exp(beta * mean reward)) or Stream-R1 (that of the balanced reward, times a
    map in space and time).

    Stream-R1 remembers past rewards: one history for each part of the batch, so that any number of processes may go on.
    """

    @classmethod
    def open(cls, settings: RewardSettings, data: Data) -> RewardWeighting | None:
        """Return how rewards weight a student's loss, if they do. Rewards judge pictures of the tiny world."""
        if settings.kind == "none":
            return None
        if not isinstance(data, WorldClips):
            raise ConfigError(f"rewards.kind {settings.kind} judges pictures of the tiny world, and this data brings "
                              "none: set rewards.kind=none.")
        return cls(settings, data.autoencoder)

    def __init__(self, settings: RewardSettings, autoencoder: TinyAutoencoder) -> None:
        if settings.kind == "stream_r1" and settings.reward == "oracle":
            raise ConfigError("rewards.reward oracle has no gradient, and stream_r1 needs one: use eyes.")
        self.settings, self.autoencoder = settings, autoencoder
        self.histories: dict[int, History] = {}

    def __call__(self, latents_BTCHW: Tensor, prompts: tuple[str, ...], step: int, part: int) -> Tensor:
        """Return a weight that broadcasts over [B, T, C, h, w], with mean 1 over the batch: the learning rate stays."""
        frames, _ = self.autoencoder.decode(latents_BTCHW.detach().float().to(self.autoencoder.basis))
        reward, asked = self._reward(step, part), list(prompts)
        if self.settings.kind == "re_dmd":
            axes = reward(frames, asked)
            weight = reward_weight(torch.stack(list(axes.values())).mean(0), self.settings.beta, mean_one=True)
            return weight.to(latents_BTCHW.device)
        rewards, maps = saliency(reward, frames, asked)
        level, self.histories[part] = balance(rewards, self.histories.get(part, History()))
        _, T, _, h, w = latents_BTCHW.shape
        weight = reward_weight(level, self.settings.beta, mean_one=True) * space_time_weight(rewards, maps, (T, h, w))
        return weight.to(latents_BTCHW.device)

    def _reward(self, step: int, part: int) -> Reward:
        if self.settings.reward == "oracle":
            return OracleReward()
        eyes = EyesReward(self.autoencoder.basis.device)
        if self.settings.reward == "eyes":
            return eyes
        return Shuffled(eyes, torch.Generator().manual_seed(step * 64 + part))  # the control

    def state_dict(self, part: int) -> dict[str, Any]:
        """Return the history of one part."""
        return self.histories.get(part, History()).state_dict()

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Go on with a history."""
        self.histories[part] = History.from_state(state)
