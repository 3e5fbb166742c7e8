"""The oracle is exact on rendered truth and notices everything that is done to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from repository import ROOT

from rollforce.errors import CheckpointError, ShapeError
from rollforce.world import MOTIONS, Scene, parse, render, sample_scene, sprite_mask, wish_of
from rollforce.world.eyes import Eyes
from rollforce.world.oracle import Report, differences, flicker, score, seams
from rollforce.world.perception import name_motion, windows

ATTRIBUTES = ("scene", "colour", "motion", "shape", "count")
SECONDS = 10


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return Eyes.load()


def truth(seed: int, count: int | None = None, seconds: int = SECONDS) -> tuple[Scene, np.ndarray]:
    scene = sample_scene(10**7 + seed, count=count, held_out=True)
    return scene, render(scene, 11 * seed, seconds * 12)


def means(reports: list[Report], names: tuple[str, ...]) -> dict[str, float]:
    return {name: float(np.mean([getattr(r, name) for r in reports])) for name in names}


# ------------------------------------------------------------------------------------------------------------- truth


def test_truth_gets_full_marks(eyes: Eyes) -> None:
    reports = [score(video, wish_of(scene), eyes=eyes) for scene, video in map(truth, range(20))]
    assert min(means(reports, ATTRIBUTES).values()) >= 0.98
    frames = means(reports, ("scene_per_frame", "colour_per_frame", "shape_per_frame", "whole"))
    assert min(frames.values()) >= 0.97


def test_soft_and_noisy_truth_is_still_read(eyes: Eyes) -> None:
    rng, reports = np.random.default_rng(0), []
    for scene, video in map(truth, range(8)):
        x = video.astype(np.float32)
        soft = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, 1, (1, 2))) / 4 + rng.normal(0, 8, x.shape)
        reports.append(score(np.clip(soft, 0, 255).astype(np.uint8), wish_of(scene), eyes=eyes))
    assert min(means(reports, ATTRIBUTES).values()) >= 0.95


def test_windows_of_truth(eyes: Eyes) -> None:
    scene, video = truth(3, count=1, seconds=23)
    parts = windows(len(video), 5)
    reports = [score(video[part], wish_of(scene), eyes=eyes) for part in parts]
    assert len(reports) == 4
    assert all(r.scene == r.colour == r.shape == r.motion == r.count == 1 for r in reports)


def test_larger_pictures_are_read_too(eyes: Eyes) -> None:
    scene = truth(2, count=1)[0]
    report = score(render(scene, 0, 72, size=128), wish_of(scene), eyes=eyes)
    assert report.scene == report.colour == report.shape == report.motion == report.count == 1


def test_what_the_prompt_leaves_open_is_not_judged(eyes: Eyes) -> None:
    video = truth(5, count=1, seconds=5)[1]
    report = score(video, parse("at night"), eyes=eyes)
    assert report.scene is not None
    assert report.colour is report.motion is report.shape is report.count is report.shape_per_frame is None


# ------------------------------------------------------------------------------------------------------- corruptions


def other(value: str, values: tuple[str, ...]) -> str:
    return values[(values.index(value) + 1) % len(values)]


def test_wrong_prompts_are_noticed(eyes: Eyes) -> None:
    for seed in range(4):
        scene, video = truth(seed, count=1)
        thing = scene.things[0]
        wrong = wish_of(replace(scene, place=other(scene.place, ("hills", "sea", "city", "mountains")), things=(replace(
            thing, colour=other(thing.colour, ("red", "green", "blue", "purple", "yellow", "orange")),
            shape=other(thing.shape, ("ball", "box", "star", "heart")), motion=other(thing.motion, MOTIONS)),)))
        report = score(video, wrong, eyes=eyes)
        assert report.scene == report.colour == report.shape == report.motion == 0 and report.count == 1


def test_a_frozen_video_does_not_move(eyes: Eyes) -> None:
    for seed in range(4):
        scene, video = truth(seed, count=1)
        at = int(sprite_mask(scene, 11 * seed, 60).sum((1, 2)).argmax())
        report = score(np.repeat(video[at : at + 1], 60, 0), wish_of(scene), eyes=eyes)
        assert report.motion == 0 and report.colour == 1 and report.shape == 1


def test_a_backward_video_goes_the_other_way(eyes: Eyes) -> None:
    scenes = (truth(n, count=1, seconds=1)[0] for n in range(50))
    scene = next(s for s in scenes if s.things[0].motion == "drifts left")
    report = score(render(scene, 0, 72)[::-1], wish_of(scene), eyes=eyes)
    assert report.motion == 0 and "drifts right" in report.seen


def test_permuted_colours_are_noticed(eyes: Eyes) -> None:
    reports = [score(video[..., [2, 0, 1]], wish_of(scene), eyes=eyes) for scene, video in
               (truth(n, count=1) for n in range(8))]
    assert means(reports, ("colour",))["colour"] < 0.3


def test_torn_shapes_are_noticed(eyes: Eyes) -> None:
    rng, reports, whole = np.random.default_rng(0), [], []
    for seed in range(8):
        scene, video = truth(seed, count=1, seconds=5)
        x, y = scene.things[0].track((11 * seed + np.arange(60)) / 12)
        torn = video.copy()
        for f in range(60):
            left, top = (int(np.clip(c[f] * 64 - 16, 0, 32)) for c in (x, y))
            part = torn[f, top : top + 32, left : left + 32].reshape(4, 8, 4, 8, 3).transpose(0, 2, 1, 3, 4)
            part = part.reshape(16, 8, 8, 3)[rng.permutation(16)].reshape(4, 4, 8, 8, 3).transpose(0, 2, 1, 3, 4)
            torn[f, top : top + 32, left : left + 32] = part.reshape(32, 32, 3)
        reports.append(score(torn, wish_of(scene), eyes=eyes))
        whole.append(score(video, wish_of(scene), eyes=eyes).whole or 0.0)
    seen = [r.whole for r in reports if r.whole is not None]
    assert np.mean(seen) < 0.35 and np.mean(whole) > 0.97
    assert np.mean([r.shape_per_frame or 0 for r in reports]) < 0.35


def test_a_missing_or_doubled_thing_is_noticed(eyes: Eyes) -> None:
    for seed in range(4):
        scene, _ = truth(seed, count=1)
        wish = wish_of(scene)
        empty = score(render(replace(scene, things=()), 0, 60), wish, eyes=eyes)
        assert empty.count == empty.colour == empty.shape == empty.motion == 0 and empty.present < 0.05
    for seed in range(4):
        pair, video = truth(seed, count=2)
        assert score(video, wish_of(pair), eyes=eyes).count == 1
        assert score(video, wish_of(replace(pair, things=pair.things[:1])), eyes=eyes).count == 0
        alone = score(render(replace(pair, things=pair.things[:1]), 0, 60), wish_of(pair), eyes=eyes)
        assert alone.count == 0 and alone.colour == 0.5


# ----------------------------------------------------------------------------------------------------------- measures


def test_seams_are_found_where_they_are() -> None:
    video = truth(0)[1]
    clean = seams(video)
    assert clean.chunk_ratio == pytest.approx(1, abs=0.25) and clean.latent_ratio == pytest.approx(1, abs=0.25)
    shaken = video.astype(np.int16)
    shaken[12:24] += 12
    shaken[36:48] += 12
    found = seams(np.clip(shaken, 0, 255).astype(np.uint8))
    assert found.chunk is not None and found.chunk > 1.5 * (clean.chunk or 0)
    assert found.inside == pytest.approx(clean.inside, rel=0.15)


def test_differences_and_flicker_do_not_depend_on_blocks() -> None:
    video = np.random.default_rng(0).integers(0, 255, (530, 8, 8, 3), np.uint8)
    x = video.astype(int)
    assert np.allclose(differences(video), np.abs(np.diff(x, axis=0)).mean((1, 2, 3)))
    assert flicker(video) == pytest.approx(np.abs(x[:-2] - 2 * x[1:-1] + x[2:]).mean())


def test_flicker_noise_is_noticed(eyes: Eyes) -> None:
    rng = np.random.default_rng(0)
    scenes = (truth(n, count=1, seconds=1)[0] for n in range(50))
    scene = next(s for s in scenes if s.place != "sea" and s.things[0].motion == "circles")
    video = render(scene, 0, 60)
    blink = np.clip(video + rng.normal(0, 4, (60, 1, 1, 1)), 0, 255).astype(np.uint8)
    calm, restless = (score(v, wish_of(scene), eyes=eyes).flicker for v in (video, blink))
    assert calm is not None and calm < 0.05 and restless is not None and restless > 2


def test_slow_brightness_drift_is_measured(eyes: Eyes) -> None:
    video = truth(1, seconds=20)[1]
    dimmed = (video * np.linspace(1, 0.7, 240)[:, None, None, None]).astype(np.uint8)
    calm, dim = (score(v, parse("at night"), eyes=eyes).drift for v in (video, dimmed))
    assert calm is not None and abs(calm.luma - 1) < 0.05 and abs(calm.sharpness - 1) < 0.25
    assert dim is not None and dim.luma - calm.luma == pytest.approx(-0.24, abs=0.05) and dim.contrast < 0.85


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_are_named_from_noisy_tracks(motion: str) -> None:
    rng, right = np.random.default_rng(0), 0
    scenes = [s for s in (sample_scene(n) for n in range(150)) if s.things[0].motion == motion]
    for scene in scenes:
        t = rng.uniform(0, 100) + np.arange(60) / 12
        x, y = scene.things[0].track(t)
        seen = (x > 0) & (x < 1) & (rng.random(60) < 0.9)
        x, y = x + rng.normal(0, 0.02, 60), y + rng.normal(0, 0.02, 60)
        right += name_motion(t[seen], x[seen], y[seen])[0] == motion
    assert right >= 0.98 * len(scenes)


def test_a_wandering_thing_has_no_named_motion() -> None:
    walk = np.random.default_rng(1).normal(0, 0.1, (60, 2)).cumsum(0) % 1
    assert name_motion(np.arange(60) / 12, *walk.T)[0] is None


def test_bad_input_is_answered(eyes: Eyes) -> None:
    with pytest.raises(ShapeError, match="uint8"):
        score(np.zeros((5, 64, 64, 3), np.float32), "a red ball", eyes=eyes)
    with pytest.raises(CheckpointError, match=r"train/oracle\.py"):
        Eyes.load(Path("nowhere.safetensors"))


def test_weights_are_small() -> None:
    assert ROOT.joinpath("assets/oracle/eyes.safetensors").stat().st_size < 400_000
