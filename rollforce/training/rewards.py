"""Rewards: how good a video is for its prompt, seen along several axes.

A reward is any callable (video [B, F, H, W, C] in 0..1, prompts) -> {axis: Tensor [B]}, differentiable in the video if
a map in space and time is wanted. Two come from the world's oracle; `Shuffled` is their control. A search over streams
wants one number for the frames of one chunk: `frame_reward` makes it of a reward, `stillness` knows no prompt. Below
stand the weights that losses make of rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from rollforce.errors import ConfigError, ShapeError
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.training.data import Data, WorldClips
from rollforce.training.recipes import RewardSettings
from rollforce.world.caption import Wish, parse
from rollforce.world.eyes import SIZE, Eyes, pad_frames
from rollforce.world.oracle import flicker, score
from rollforce.world.scenes import COLOURS, PLACES, TIMES

Reward = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
FrameReward = Callable[[np.ndarray, str], float]
"""How good frames, uint8 [F, H, W, 3], are for their prompt: more is better."""


class OracleReward:
    """The oracle's verdict in 0..1 on each of `axes` (any measure of oracle.Report that is a share). No gradient.

    What a prompt leaves open counts as the mean of what it says, 1 if it says nothing: then the mean of the axes is
    the mean of what was asked. Give it 2 s of video at least; motion is judged best from 5 s."""

    def __init__(self, axes: Sequence[str] = ("scene", "colour", "shape", "motion"), eyes: Eyes | None = None) -> None:
        self.axes, self.eyes = tuple(axes), eyes or Eyes.load()

    def __call__(self, video_BFHWC: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        _check(video_BFHWC, prompts)
        frames = (video_BFHWC.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
        rows = []
        for video, prompt in zip(frames, prompts, strict=True):
            numbers = score(video, _wish(prompt), eyes=self.eyes).numbers()
            said = [numbers[axis] for axis in self.axes]
            known = [value for value in said if value is not None]
            mean = sum(known) / len(known) if known else 1.0
            rows.append([mean if value is None else value for value in said])
        table = torch.tensor(rows, device=video_BFHWC.device)
        return dict(zip(self.axes, table.unbind(1), strict=True))


class EyesReward:
    """A differentiable verdict of the oracle's network for single frames; axes `scene` and `colour`, each in (0, 1].

    An axis is 1 / (1 - log p): 1 where p = 1, and, unlike p, with a slope where the video is far off. Scene: p of the
    wished place and time, mean of the logarithm over frames. Colour: half of its logarithm is that each wished colour
    is shown (mean p over frames: things may leave the picture), half, if every thing has a wished colour, that no other
    is (in the mean frame). What a prompt leaves open counts 1 and has no gradient."""

    def __init__(self, device: str | torch.device = "cpu", eyes: Eyes | None = None) -> None:
        """Where to compute; `eyes` (bundled ones if None) go there and are frozen."""
        self.finder = (eyes or Eyes.load()).finder.requires_grad_(False).to(device)
        self.device = device

    def __call__(self, video_BFHWC: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        _check(video_BFHWC, prompts)
        heat, _, scene = self.finder(pad_frames(_as_input(video_BFHWC.to(self.device))))
        flat, shape = heat.flatten(2), video_BFHWC.shape[:2]
        soft_top = (flat.softmax(-1) * flat).sum(-1)  # of each colour's map: the peak's whole surroundings count
        seen_BF6, scene_BF7 = soft_top.unflatten(0, shape), scene.unflatten(0, shape)
        wishes = [_wish(prompt) for prompt in prompts]
        scenes = torch.stack([_scene(logits, wish) for logits, wish in zip(scene_BF7, wishes, strict=True)])
        colours = torch.stack([_colour(logits, wish) for logits, wish in zip(seen_BF6, wishes, strict=True)])
        return {axis: (1 / (1 - value)).to(video_BFHWC.device) for axis, value in
                (("scene", scenes), ("colour", colours))}


class Shuffled:
    """The control of a reward: the same rewards, handed out at random among the videos of the batch.

    It has the same histogram, so what remains of a gain under it comes from larger steps, not from knowing what is
    good. All axes of a video stay together. ConfigError for a batch of one, which cannot be shuffled."""

    def __init__(self, reward: Reward, generator: torch.Generator) -> None:
        """`generator`: on the CPU; save and restore it with the run."""
        self.reward, self.generator = reward, generator

    def __call__(self, video_BFHWC: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        order = shuffle(len(prompts), self.generator)
        return {axis: value[order.to(value.device)] for axis, value in self.reward(video_BFHWC, prompts).items()}


def shuffle(videos: int, generator: torch.Generator) -> Tensor:
    """A random order [B] in which no video keeps its place: index rewards and finished weights with the same one."""
    if videos < 2:
        raise ConfigError(f"a batch of {videos} cannot be shuffled: use at least 2 videos per step for this control.")
    around = torch.randperm(videos, generator=generator)
    order = torch.empty_like(around)
    order[around] = around.roll(1)
    return order


def _check(video_BFHWC: Tensor, prompts: Sequence[str]) -> None:
    if video_BFHWC.dim() != 5 or video_BFHWC.shape[-1] != 3 or not video_BFHWC.is_floating_point():
        raise ShapeError(f"a reward takes float video [B, F, H, W, 3] in 0..1, not {video_BFHWC.dtype} "
                         f"{list(video_BFHWC.shape)}.")
    if len(prompts) != len(video_BFHWC):
        raise ShapeError(f"{len(video_BFHWC)} videos and {len(prompts)} prompts: pass one prompt for each video.")


def _wish(prompt: str) -> Wish:
    return parse(prompt) if prompt else Wish()


def _as_input(video_BFHWC: Tensor) -> Tensor:
    """Float video in 0..1 -> [B * F, 3, 64, 64] in -1..1, with its gradient."""
    x = rearrange(video_BFHWC, "b f h w c -> (b f) c h w").float() * 2 - 1
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return x


def _scene(logits_F7: Tensor, wish: Wish) -> Tensor:
    """Mean log-probability over frames of the wished place and time; 0 if neither is wished."""
    place, time = logits_F7.split([len(PLACES), len(TIMES)], 1)
    parts = [logits.log_softmax(1)[:, names.index(value)].mean() for logits, names, value in
             ((place, PLACES, wish.place), (time, TIMES, wish.time)) if value is not None]
    return torch.stack(parts).sum() if parts else logits_F7.new_zeros(())


def _colour(logits_F6: Tensor, wish: Wish) -> Tensor:
    """Log-probability that the wished colours are shown and others are not; 0 if no colour is wished."""
    wished = [COLOURS.index(thing.colour) for thing in wish.things if thing.colour is not None]
    if not wished:
        return logits_F6.new_zeros(())
    frames = torch.tensor(float(len(logits_F6)), device=logits_F6.device)
    shown = (F.logsigmoid(logits_F6[:, wished]).logsumexp(0) - frames.log()).mean()
    others = [i for i in range(len(COLOURS)) if i not in wished]
    if len(wished) < len(wish.things) or not others:
        return shown
    return (shown + F.logsigmoid(-logits_F6[:, others].amax(1)).mean()) / 2


def frame_reward(reward: Reward) -> Callable[[np.ndarray, str], float]:
    """Return a reward of frames, uint8 [F, H, W, 3], for their prompt: the mean of the axes of `reward`."""

    def judge(frames: np.ndarray, prompt: str) -> float:
        axes = reward(torch.from_numpy(np.ascontiguousarray(frames))[None] / 255, [prompt])
        return float(torch.stack(list(axes.values())).mean())

    return judge


def stillness(frames: np.ndarray, prompt: str) -> float:
    """Return how little frames, uint8 [F, H, W, 3], flicker: their mean second difference in grey levels, negated. A
    search can cheat this reward: what stands still is calmest, whatever was asked for."""
    return -(flicker(frames) or 0.0)


# -- weights from rewards, always detached: what `weight` of losses.dmd and losses.sid may be --------------------------


Rewards = Mapping[str, Tensor]  # axis -> [B]
FLAT = 1e-8  # a saliency that spans less than this says nothing: all ones


def reward_weight(reward_B: Tensor, beta: float = 2.0, mean_one: bool = False) -> Tensor:
    """Return exp(beta * reward), [B, 1, 1, 1, 1] (Re-DMD, loss = exp(beta r) * DMD).

    Rewards should lie in about -1..1 (a normalised score) or 0..1: at beta 2 the weights of two videos then differ by
    at most e^4 or e^2. A reward that is large everywhere is a larger learning rate; `mean_one` divides by the mean over
    the batch, so that only differences between its videos count (and nothing at all does in a batch of one)."""
    weight = (beta * reward_B.detach().float()).exp()
    return (weight / weight.mean() if mean_one else weight)[:, None, None, None, None]



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
        """Return the standard deviation over the axes of how much each rose from the older to the newer rows."""
        if self.steps < self.warm_up or len(self.rows) < 4 or len(self.rows[0]) < 2:
            return 0.0
        rows = torch.tensor(self.rows, dtype=torch.float64)
        half = len(rows) // 2
        return float((rows[half:].mean(0) - rows[:half].mean(0)).std())


def balance(rewards: Rewards, history: History, penalty: float = 0.5) -> tuple[Tensor, History]:
    """Return Stream-R1's inter-reliability between videos, [B], the mean of the axes - penalty * how unevenly they
    improved; and the new history, which takes the mean of the batch (the reference has batches of one)."""
    stacked = torch.stack([rewards[axis].detach().float() for axis in sorted(rewards)])
    history = history.with_row(tuple(stacked.mean(1).tolist()))
    return stacked.mean(0) - penalty * history.unevenness(), history



def saliency(reward: Reward, video_BFHWC: Tensor, prompts: Sequence[str]) -> tuple[Rewards, Rewards]:
    """Return the rewards [B] of every axis, and |d reward / d pixel| [B, F, H, W] (L2 norm over the colour channels).

    The reward must judge each video by itself; an axis without gradient has a map of zeros. ConfigError if all do."""
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


def space_time_weight(rewards: Rewards, maps: Mapping[str, Tensor], latent: tuple[int, int, int],
                      temperature: float = 1.0, floor_time: float = 0.2, floor_space: float = 0.15) -> Tensor:
    """Return Stream-R1's intra-perplexity, weights [B, T, 1, h, w] with mean 1 for each video, for `latent` T, h, w.

    The saliencies of the axes are averaged with softmax(-reward / temperature), so that the weakest axis says most, and
    pooled to latents. The means of the latents become a profile in time, what is left a picture for each latent; each
    is brought to 0..1, held above its floor and divided by its mean.

    Deviations from the reference: per video (it has batches of one); area pooling where it interpolates patches."""
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
    """Weights a student's loss by Re-DMD, exp(beta * mean reward), or Stream-R1 (balanced reward, in space and time).

    Stream-R1 remembers past rewards, for each part of the batch by itself, so that any number of processes goes on."""

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
        reward, beta = self._reward(step, part), self.settings.beta
        if self.settings.kind == "re_dmd":
            mean = torch.stack(list(reward(frames, prompts).values())).mean(0)
            return reward_weight(mean, beta, mean_one=True).to(latents_BTCHW.device)
        rewards, maps = saliency(reward, frames, prompts)
        level, self.histories[part] = balance(rewards, self.histories.get(part, History()))
        _, T, _, h, w = latents_BTCHW.shape
        weight = reward_weight(level, beta, mean_one=True) * space_time_weight(rewards, maps, (T, h, w))
        return weight.to(latents_BTCHW.device)

    def _reward(self, step: int, part: int) -> Reward:
        if self.settings.reward == "oracle":
            return OracleReward()
        eyes, generator = EyesReward(self.autoencoder.basis.device), torch.Generator().manual_seed(step * 64 + part)
        return eyes if self.settings.reward == "eyes" else Shuffled(eyes, generator)

    def state_dict(self, part: int) -> dict[str, Any]:
        """Return the history of one part."""
        return self.histories.get(part, History()).state_dict()

    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None:
        """Go on with a history."""
        self.histories[part] = History.from_state(state)
