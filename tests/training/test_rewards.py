"""Rewards: a true video of a prompt beats videos of other prompts; gradients point the right way; the control."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rollforce.errors import ConfigError, ShapeError
from rollforce.training.rewards import EyesReward, OracleReward, Shuffled, saliency, shuffle, space_time_weight
from rollforce.world import Scene, render, sample_scene
from rollforce.world.caption import caption
from rollforce.world.eyes import Eyes

VIDEOS = 6


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return Eyes.load()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(10**7 + 40 + i, count=1 + i // 4, held_out=True) for i in range(VIDEOS)]


def films(scenes: list[Scene], frames: int) -> Tensor:
    return torch.stack([torch.from_numpy(render(scene, 0, frames)) for scene in scenes]).float() / 255


def prompts_of(scenes: list[Scene]) -> list[str]:
    return [caption(scene, 0, full=True) for scene in scenes]


def around(values: list[str]) -> list[str]:
    return [*values[1:], values[0]]


def test_oracle_reward(scenes: list[Scene], eyes: Eyes) -> None:
    reward, video, prompts = OracleReward(eyes=eyes), films(scenes[:3], 60), prompts_of(scenes[:3])
    right = reward(video, prompts)
    assert list(right) == ["scene", "colour", "shape", "motion"]
    assert all(float(value.min()) == 1 for value in right.values())
    wrong = torch.stack(list(reward(video, around(prompts)).values()))
    assert bool((wrong >= 0).all()) and float(wrong.mean()) < 0.6


def test_oracle_reward_of_what_is_not_asked(scenes: list[Scene], eyes: Eyes) -> None:
    """An open attribute counts as the mean of the said ones; an empty prompt is always fulfilled."""
    video, reward = films(scenes[:1], 24), OracleReward(eyes=eyes)
    other = next(t for t in ("day", "night") if t != scenes[0].time)
    wrong = f"a {scenes[0].things[0].colour} {scenes[0].things[0].shape} at {other}".replace("at day", "by day")
    verdict = {axis: float(value) for axis, value in reward(video, [wrong]).items()}
    assert verdict == {"scene": 0, "colour": 1, "shape": 1, "motion": pytest.approx(2 / 3)}
    assert all(float(value) == 1 for value in reward(video, [""]).values())


def test_eyes_reward_prefers_the_true_video(scenes: list[Scene], eyes: Eyes) -> None:
    reward, video, prompts = EyesReward(eyes=eyes), films(scenes, 12), prompts_of(scenes)
    right, wrong = reward(video, prompts), reward(video, around(prompts))
    for axis in ("scene", "colour"):
        assert float(right[axis].min()) > 0.7, axis
        assert float(right[axis].max()) <= 1 and float(wrong[axis].min()) > 0
    differs = [i for i in range(VIDEOS) if scenes[i].place != scenes[(i + 1) % VIDEOS].place]
    assert differs and bool((wrong["scene"] < right["scene"] - 0.3)[differs].all())
    colours = [{thing.colour for thing in scene.things} for scene in scenes]
    apart = [i for i in range(VIDEOS) if colours[i] != colours[(i + 1) % VIDEOS]]
    assert apart and bool((wrong["colour"] < right["colour"] - 0.3)[apart].all())


def test_eyes_reward_leaves_open_what_is_not_asked(scenes: list[Scene], eyes: Eyes) -> None:
    verdict = EyesReward(eyes=eyes)(films(scenes[:2], 4), ["", "at night"])
    assert verdict["scene"][0] == 1 and verdict["scene"][1] != 1 and verdict["colour"].tolist() == [1, 1]


def test_a_step_along_the_gradient_raises_the_reward(scenes: list[Scene], eyes: Eyes) -> None:
    """For wrong videos, on both axes; each video's gradient is its own."""
    reward, prompts = EyesReward(eyes=eyes), around(prompts_of(scenes))
    video = films(scenes, 4).requires_grad_()
    before = reward(video, prompts)
    for axis in ("scene", "colour"):
        (gradient,) = torch.autograd.grad(before[axis].sum(), video, retain_graph=True)
        assert bool(gradient.isfinite().all())
        length = gradient.flatten(1).norm(dim=1)
        low = before[axis] < 0.9
        assert bool((length[low] > 0).all()) and int(low.sum()) > 2
        step = 0.5 * gradient / length.clamp_min(1e-12)[:, None, None, None, None]
        after = reward((video + step).detach(), prompts)[axis]
        assert bool((after > before[axis])[low].all()), axis
    alone = torch.autograd.grad(before["scene"][0], video)[0]
    assert bool(alone[0].any()) and not alone[1:].any()


def test_the_networks_stay_as_they_are(scenes: list[Scene]) -> None:
    eyes = Eyes.load()
    reward = EyesReward(eyes=eyes)
    video = films(scenes[:1], 4).requires_grad_()
    sum(reward(video, prompts_of(scenes[:1])).values()).sum().backward()  # type: ignore[union-attr]
    assert video.grad is not None and all(p.grad is None for p in eyes.finder.parameters())


def test_map_of_the_eyes_looks_at_the_thing(scenes: list[Scene], eyes: Eyes) -> None:
    """Asked for another colour, the weight lies on the thing more than elsewhere."""
    scene = next(s for s in scenes if s.things[0].motion in ("circles", "bounces"))
    wish = next(c for c in ("red", "blue") if c != scene.things[0].colour)
    rewards, maps = saliency(EyesReward(eyes=eyes), films([scene], 4), [f"a {wish} {scene.things[0].shape}"])
    assert not maps["scene"].any()  # not asked for
    weight = space_time_weight(rewards, maps, (1, 8, 8))[0, 0, 0]
    empty = render(Scene(scene.place, scene.time, (), scene.sun, scene.ridge, scene.swell), 0, 1)[0]
    thing = (torch.from_numpy(render(scene, 0, 1)[0]).float() - torch.from_numpy(empty).float()).abs().sum(-1)
    cells = thing.view(8, 8, 8, 8).mean((1, 3)) > 20
    assert 0 < int(cells.sum()) < 32 and float(weight[cells].mean()) > 2 * float(weight[~cells].mean())


def test_the_control_has_the_same_histogram() -> None:
    def reward(video: Tensor, prompts: object) -> dict[str, Tensor]:
        return {"a": torch.arange(5.0), "b": torch.arange(5.0) * 10}

    draws = torch.Generator().manual_seed(0)
    control, video = Shuffled(reward, draws), torch.zeros(5, 2, 4, 4, 3)
    orders = []
    for _ in range(20):
        got = control(video, [""] * 5)
        assert torch.equal(got["b"], got["a"] * 10)  # the axes of a video stay together
        assert sorted(got["a"].tolist()) == [0, 1, 2, 3, 4]
        assert bool((got["a"] != torch.arange(5.0)).all())  # nobody keeps its own
        orders.append(tuple(got["a"].tolist()))
    assert len(set(orders)) > 5
    with pytest.raises(ConfigError, match="at least 2 videos"):
        shuffle(1, draws)


def test_what_is_not_a_video_is_refused(eyes: Eyes) -> None:
    reward = EyesReward(eyes=eyes)
    with pytest.raises(ShapeError, match="float video"):
        reward(torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8), ["at night"])
    with pytest.raises(ShapeError, match="1 videos and 2 prompts"):
        reward(torch.zeros(1, 2, 64, 64, 3), ["at night"] * 2)
