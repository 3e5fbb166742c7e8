"""Rewards: how good a video is for its prompt, seen along several axes.

A reward is any callable (video [B, F, H, W, C] in 0..1, prompts) -> {axis: Tensor [B]}, differentiable in the video if
a map in space and time is wanted (reward_weights.py). Two come from the world's oracle; `Shuffled` is their control. A
search over streams wants one number for the frames of one chunk: `frame_reward` makes it of a reward, `stillness` knows
no prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from rollforce.errors import ConfigError, ShapeError
from rollforce.world.caption import Wish, parse
from rollforce.world.eyes import SIZE, Eyes, pad_frames
from rollforce.world.measures import flicker
from rollforce.world.oracle import score
from rollforce.world.scenes import COLOURS, PLACES, TIMES

Reward = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
FrameReward = Callable[[np.ndarray, str], float]
"""How good frames, uint8 [F, H, W, 3], are for their prompt: more is better."""


class OracleReward:
    """The oracle's verdict in 0..1 on each of `axes` (any measure of oracle.Report that is a share). No gradient.

    What a prompt leaves open counts as the mean of what it says, 1 if it says nothing: then the mean of the axes is
    the mean of what was asked. Give it 2 s of video at least; motion is judged best from 5 s.
    """

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

    An axis is 1 / (1 - log p): 1 where p = 1, and, unlike p itself, with a slope that does not vanish where the video
    is far off. Scene: p of the wished place and time, mean of the logarithm over frames. Colour: half of its
    logarithm is that each wished colour is shown (mean p over frames: things may leave the picture), half that no
    other colour is (in the mean frame); the second half needs a wished colour for every thing. Shape and motion
    are not judged. What a prompt leaves open counts 1 and has no gradient.
    """

    def __init__(self, device: str | torch.device = "cpu", eyes: Eyes | None = None) -> None:
        """Where to compute; `eyes` (bundled ones if None) go there and are frozen."""
        self.finder = (eyes or Eyes.load()).finder.requires_grad_(False).to(device)
        self.device = device

    def __call__(self, video_BFHWC: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        _check(video_BFHWC, prompts)
        heat, _, scene = self.finder(pad_frames(_as_input(video_BFHWC.to(self.device))))
        shape = video_BFHWC.shape[:2]
        seen_BF6, scene_BF7 = _softest_top(heat).unflatten(0, shape), scene.unflatten(0, shape)
        wishes = [_wish(prompt) for prompt in prompts]
        scenes = torch.stack([_scene(logits, wish) for logits, wish in zip(scene_BF7, wishes, strict=True)])
        colours = torch.stack([_colour(logits, wish) for logits, wish in zip(seen_BF6, wishes, strict=True)])
        return {axis: (1 / (1 - value)).to(video_BFHWC.device) for axis, value in
                (("scene", scenes), ("colour", colours))}


class Shuffled:
    """The control of a reward: the same rewards, handed out at random among the videos of the batch.

    It has the same histogram, so what remains of a gain under it comes from larger steps, not from knowing what is
    good. All axes of a video stay together. ConfigError for a batch of one, which cannot be shuffled.
    """

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


def _softest_top(heat: Tensor) -> Tensor:
    """The largest logit of each colour's map [N, 6, h, w] -> [N, 6], softly: the peak's whole surroundings count."""
    flat = heat.flatten(2)
    return (flat.softmax(-1) * flat).sum(-1)


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
