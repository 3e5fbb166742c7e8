"""Rewards: a true video of a prompt beats videos of other prompts; gradients point the right way; the control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rollforce.errors import ConfigError, ShapeError
from rollforce.training import losses
from rollforce.training.rewards import (
    EyesReward,
    History,
    OracleReward,
    Shuffled,
    balance,
    reward_weight,
    saliency,
    shuffle,
    space_time_weight,
)
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


# ---- Re-DMD


def test_reward_weight_is_the_exponential() -> None:
    reward = torch.tensor([0.0, 0.5, -1.0], requires_grad=True)
    weight = reward_weight(reward, beta=2.0)
    assert weight.shape == (3, 1, 1, 1, 1) and not weight.requires_grad
    assert weight.flatten().tolist() == pytest.approx([1.0, math.e, math.exp(-2)])
    fair = reward_weight(reward, mean_one=True)
    assert float(fair.mean()) == pytest.approx(1) and torch.allclose(fair / fair[0], weight / weight[0])
    assert torch.equal(reward_weight(torch.full((3,), 0.7), mean_one=True), torch.ones(3, 1, 1, 1, 1))


def test_weight_scales_the_gradient_of_each_video() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 3, 1, 2, 2, requires_grad=True), torch.randn(2, 3, 1, 2, 2)
    sigma = torch.full((2, 3), 0.5)

    def gradient(weight: Tensor | None) -> Tensor:
        loss = losses.dmd(x, lambda n, s: 0.3 * n, lambda n, s: n.tanh(), sigma, noise, weight)
        return torch.autograd.grad(loss, x)[0]

    weighted = gradient(reward_weight(torch.tensor([0.0, 1.0])))
    assert torch.allclose(weighted[0], gradient(None)[0])
    assert torch.allclose(weighted[1], math.exp(2) * gradient(None)[1])


# ---- Stream-R1 between videos


def run(rows: list[tuple[float, float]], history: History) -> tuple[list[float], History]:
    """One video per step with these rewards of two axes."""
    found = []
    for a, b in rows:
        level, history = balance({"a": torch.tensor([a]), "b": torch.tensor([b])}, history)
        found.append(float(level))
    return found, history


def test_balanced_by_hand() -> None:
    """Four steps: a rises by 1, b by .2 from the older to the newer half; their standard deviation is .8 / sqrt 2."""
    found, _ = run([(0.0, 0.0), (0.0, 0.2), (1.0, 0.4), (1.0, 0.2)], History(window=4, warm_up=4))
    assert found[:3] == pytest.approx([0.0, 0.1, 0.7])  # warm-up: the plain mean
    assert found[3] == pytest.approx(0.6 - 0.5 * 0.8 / math.sqrt(2))


def test_even_improvement_costs_nothing_and_the_window_forgets() -> None:
    rising = [(i / 10, i / 10 + 3) for i in range(10)]
    found, _ = run(rising, History(window=4, warm_up=4))
    assert found == pytest.approx([a + 1.5 for a, _ in rising])
    found, history = run([(0.0, 0.0)] * 2 + [(1.0, 0.0)] * 6, History(window=4, warm_up=4))
    assert found[3] < 0.5 and found[-1] == pytest.approx(0.5) and len(history.rows) == 4


def test_warm_up_is_counted_in_steps() -> None:
    found, history = run([(float(i), 0.0) for i in range(60)], History())
    assert found[48] == pytest.approx(24.0) and found[49] < 24.5  # step 50 is the first that counts
    assert history.steps == 60 and len(history.rows) == 50


def test_balanced_judges_each_video() -> None:
    level, history = balance({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 0.0])}, History())
    assert level.tolist() == [0.5, 0.0] and history.rows == ((0.5, 0.0),)
    assert not balance({"a": torch.ones(2, requires_grad=True)}, History())[0].requires_grad
    with pytest.raises(ConfigError, match="had 2 axes and now has 1"):
        balance({"a": torch.ones(2)}, history)


def test_history_survives_a_checkpoint(tmp_path: Path) -> None:
    rows = [(0.1 * i, 0.3 * i) for i in range(9)]
    _, history = run(rows[:6], History(window=5, warm_up=3))
    torch.save(history.state_dict(), tmp_path / "state.pt")
    again = History.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again == history
    assert run(rows[6:], again) == run(rows[6:], history)


# ---- Stream-R1 inside a video


def test_map_by_hand() -> None:
    """One axis, two latents of 1 x 2 cells, one frame and one pixel each: saliency 0 1 / 2 6."""
    maps = {"a": torch.tensor([[[[0.0, 1.0]], [[2.0, 6.0]]]])}
    weight = space_time_weight({"a": torch.tensor([0.3])}, maps, (2, 1, 2))
    assert weight.shape == (1, 2, 1, 1, 2)
    time = torch.tensor([0.2, 1.0]) / 0.6  # means .5 and 4, brought to 0 and 1, floor .2
    space = torch.tensor([0.15, 1.0]) / 0.575  # in both latents the second cell is the larger
    assert torch.allclose(weight[0, :, 0, 0], time[:, None] * space)
    assert float(weight.mean()) == pytest.approx(1)


def test_the_weakest_axis_says_most() -> None:
    maps = {"a": torch.tensor([[[[1.0, 0.0]]]]), "b": torch.tensor([[[[0.0, 1.0]]]])}

    def first_cell(a: float, b: float, temperature: float = 1.0) -> float:
        rewards = {"a": torch.tensor([a]), "b": torch.tensor([b])}
        return float(space_time_weight(rewards, maps, (1, 1, 2), temperature, floor_space=0.0)[0, 0, 0, 0, 0])

    assert first_cell(0.0, 1.0) == 2 and first_cell(1.0, 0.0) == 0 and first_cell(0.5, 0.5) == 1
    soft = {"a": torch.tensor([[[[1.0, 0.0, 0.5]]]]), "b": torch.tensor([[[[0.0, 1.0, 0.5]]]])}
    weight = space_time_weight({"a": torch.tensor([0.0]), "b": torch.tensor([1.0])}, soft, (1, 1, 3), floor_space=0.0)
    share = 1 / (1 + math.exp(-1))  # of the weaker axis: cells (share, 1 - share, 1 / 2), brought to 0..1
    middle = (0.5 - (1 - share)) / (2 * share - 1)
    assert torch.allclose(weight.flatten(), torch.tensor([1, 0, middle]) * 3 / (1 + middle))


def test_pooling_to_latents() -> None:
    """Eight frames of 4 x 4 pixels are two latents of 2 x 2: a hot pixel is felt in its own cell."""
    hot = torch.zeros(1, 8, 4, 4)
    hot[0, 5, 3, 0] = 1.0
    weight = space_time_weight({"a": torch.ones(1)}, {"a": hot}, (2, 2, 2))
    assert int(weight.argmax()) == 4 + 2 and float(weight.mean()) == pytest.approx(1)
    assert torch.allclose(weight[0, 0], weight[0, 0, :, :1, :1].expand(1, 2, 2))  # nothing to tell apart: flat


def test_each_video_has_mean_one_and_its_own_map() -> None:
    torch.manual_seed(0)
    rewards, maps = {a: torch.rand(3) for a in "xyz"}, {a: torch.rand(3, 8, 16, 16) for a in "xyz"}
    weight = space_time_weight(rewards, maps, (2, 4, 4))
    assert weight.shape == (3, 2, 1, 4, 4) and torch.allclose(weight.mean((1, 2, 3, 4)), torch.ones(3))
    assert float(weight.min()) > 0 and float(weight.std()) > 0.1
    alone = space_time_weight({a: r[1:2] for a, r in rewards.items()}, {a: m[1:2] for a, m in maps.items()}, (2, 4, 4))
    assert torch.allclose(alone, weight[1:2], atol=1e-6)


def test_a_reward_that_does_not_care_weighs_all_alike() -> None:
    def constant(video: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"a": video.sum((1, 2, 3, 4)) * 0 + 0.4, "b": torch.ones(len(video))}

    rewards, maps = saliency(constant, torch.rand(2, 8, 4, 4, 3), ["", ""])
    assert torch.equal(space_time_weight(rewards, maps, (2, 2, 2)), torch.ones(2, 2, 1, 2, 2))


def test_saliency_is_the_norm_of_the_gradient() -> None:
    slope = torch.tensor([3.0, 4.0, 0.0])

    def reward(video: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"late": (video[:, 1:] * slope).sum((1, 2, 3, 4)), "square": video.square().sum((1, 2, 3, 4)) / 2}

    video = torch.rand(2, 2, 3, 3, 3)
    with torch.no_grad():  # works where training code has switched gradients off
        rewards, maps = saliency(reward, video, ["", ""])
    assert not rewards["late"].requires_grad and not video.requires_grad
    assert torch.allclose(maps["late"][:, 1], torch.full((2, 3, 3), 5.0)) and not maps["late"][:, 0].any()
    assert torch.allclose(maps["square"], video.norm(dim=-1), atol=1e-6)
    with pytest.raises(ConfigError, match="needs a differentiable reward"):
        saliency(lambda v, p: {"a": torch.ones(2)}, video, ["", ""])
