"""What a stream is given: a past, a video to follow; and computing ahead, which changes no byte."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_model import FOR_ANY_MODEL, make_model_folder

from rollforce.engine.layout import rolling
from rollforce.engine.settings import LayoutSettings
from rollforce.errors import ConfigError, ShapeError, SnapshotError
from rollforce.streaming.events import Cue
from rollforce.streaming.inputs import Follower, FollowSettings, StreamInputs
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.session import Session
from rollforce.video.images import fit_picture, read_clip, read_picture
from rollforce.video.writer import VideoWriter
from rollforce.world.eyes import Eyes
from rollforce.world.render import render as render_scene
from rollforce.world.scenes import COLOURS, PLACES, TIMES, Scene, Thing

PROMPT = "a red ball bounces over green hills"
SIZE = (32, 48)
CLIP = np.random.default_rng(0).integers(256, size=(30, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("small"), world=True)


@pytest.fixture(scope="module")
def small(folder: Path) -> Model:
    return load(folder)


def frames(session: Session, seconds: float | None = None) -> np.ndarray:
    with session:
        return np.concatenate([chunk.frames for chunk in session.stream(seconds)])


def test_a_stream_goes_on_from_an_image_and_from_a_clip(small: Model) -> None:
    plain = frames(small.session(PROMPT, seed=1), 3)
    with small.session(PROMPT, seed=1, image=CLIP[0]) as session:
        assert session.given_frames.shape == (4, *SIZE, 3)
        first = next(session.stream())
        assert first.pts == 0 and first.frames.shape == (12, *SIZE, 3)
        assert not np.array_equal(first.frames, plain[:12])
    with small.session(PROMPT, seed=1, video=CLIP) as session:  # 30 frames: the newest 28 fill 7 latents
        assert session.given_frames.shape == (28, *SIZE, 3)
    changed = CLIP.copy()
    changed[:2] = 0
    same, other = (frames(small.session(PROMPT, seed=1, video=clip), 2) for clip in (CLIP, changed))
    assert np.array_equal(same, other)  # the first two frames are those left out
    assert not np.array_equal(same, frames(small.session(PROMPT, seed=1, video=CLIP[::-1]), 2))


@pytest.mark.parametrize("preset", [
    pytest.param(p, marks=() if p in ("rolling", "chunkwise", "streamdit") else pytest.mark.slow) for p in FOR_ANY_MODEL
])
@pytest.mark.parametrize("given", [{"image": CLIP[0]}, {"video": CLIP}], ids=["image", "video"])
def test_what_goes_on_can_be_kept_split_and_told_otherwise(folder: Path, preset: str, given: dict) -> None:
    model, cue = load(folder, stream=preset), Cue(2, "a blue star drifts right")
    whole = frames(model.session(PROMPT, seed=1, cues=[cue], **given), 5)
    with model.session(PROMPT, seed=1, remember=2, **given) as session:
        begun = list(session.stream(1))
        session.prompt(cue.prompt, at=cue.at)
        saved, twin = session.snapshot(), session.fork()
        rest = list(session.stream(4))
        told = [event for chunk in rest for event in chunk.events if event.kind == "applied"]
        assert [(event.chunk, event.frame) for event in told] == [(2, 24)]  # what was given is not counted
        assert np.array_equal(np.concatenate([chunk.frames for chunk in (*begun, *rest)]), whole)
        session.rewind(2)
        assert np.array_equal(np.concatenate([chunk.frames for chunk in session.stream(2)]), whole[36:])
    assert np.array_equal(frames(twin, 4), whole[12:])
    assert np.array_equal(frames(model.resume(saved), 4), whole[12:])


def test_the_bundled_model_goes_on_with_what_it_is_shown() -> None:
    """What the prompt does not say (place, time of day, where the thing is) is that of the picture or the clip."""
    model, eyes = load("tiny"), Eyes.load()
    thing = Thing("yellow", "heart", "circles", x=0.5, y=0.42, reach=0.2, phase=0.1)
    scene = Scene("city", "night", (thing,))
    clip = render_scene(scene, 0, 36)
    x, y = thing.track(np.arange(36, 48) / 12)
    # A picture does not say how fast, or which way round, a thing circles: what comes half a second later is free.
    for given, known in (({"video": clip}, (0, 6)), ({"image": clip[-1]}, (0,))):
        shown = frames(model.session("a yellow heart circles", seed=0, **given), 1)
        look = eyes.look(shown)
        assert {PLACES[i] for i in look.place.argmax(1)} == {"city"}
        assert {TIMES[i] for i in look.time.argmax(1)} == {"night"}
        for frame in known:
            seen = max(look.things[frame], key=lambda each: each.heat)
            assert COLOURS[seen.colour.argmax()] == "yellow"
            assert np.hypot(seen.x - x[frame], seen.y - y[frame]) < 0.12  # widths; it is 0.36 wide
    plain = eyes.look(frames(model.session("a yellow heart circles", seed=0), 1))
    assert (PLACES[plain.place[-1].argmax()], TIMES[plain.time[-1].argmax()]) != ("city", "night")


@pytest.mark.parametrize("preset", [p for p in FOR_ANY_MODEL if p != "streamdit"])
def test_a_stream_follows_a_video_to_its_end(folder: Path, preset: str) -> None:
    model = load(folder, stream=preset)
    shown = frames(model.session(PROMPT, follow=CLIP, strength=0.5))
    assert shown.shape == (32, *SIZE, 3)  # 30 pictures: the last one stands until its latent is whole
    assert not np.array_equal(shown, frames(model.session(PROMPT, follow=CLIP, strength=0.9)))
    assert not np.array_equal(shown, frames(model.session(PROMPT, follow=CLIP[::-1].copy(), strength=0.5)))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_short_video_is_followed_to_its_end(small: Model, count: int) -> None:
    shown = frames(small.session(PROMPT, follow=CLIP[:count]))
    standing = np.concatenate([CLIP[:count], np.repeat(CLIP[count - 1 : count], -count % 4, axis=0)])
    assert np.array_equal(shown, frames(small.session(PROMPT, follow=standing))) and len(shown) == len(standing)


def test_there_must_be_something_to_follow(small: Model) -> None:
    with small.session(PROMPT, follow=iter(())) as session, pytest.raises(ConfigError, match="follow= has no pictures"):
        next(session.stream())


def test_a_video_is_followed_while_it_comes(small: Model) -> None:
    pulled: list[int] = []

    def camera():
        for number in range(10**6):
            pulled.append(number)
            yield CLIP[number % len(CLIP)]

    with small.session(PROMPT, follow=camera(), strength=0.99) as session:
        assert not pulled
        next(session.stream())
        in_flight = FollowSettings(0.99).layout(small.stream_settings.layout).build().slots
        assert len(pulled) == 4 * in_flight
        with pytest.raises(SnapshotError, match="follows a video cannot be"):
            session.snapshot()


def test_the_layout_of_a_followed_video_begins_at_its_strength() -> None:
    settings = LayoutSettings("rolling", 3, (1.0, 0.8, 0.5, 0.2), shift=1.0)
    assert FollowSettings(0.7, yielding=0.1).layout(settings).build() == rolling((0.7, 0.5, 0.2), 3)
    assert FollowSettings(0.55, yielding=0.1).layout(settings).build() == rolling((0.55, 0.2), 3)
    assert FollowSettings(1.0, yielding=0).layout(settings).build() == settings.build()


def test_noise_falls_where_the_video_moves(small: Model) -> None:
    still, moving = np.zeros((36, *SIZE, 3), np.uint8), np.zeros((36, *SIZE, 3), np.uint8)
    moving[::2] = 60  # 60 / 255 is more than `full`
    settings = FollowSettings(0.8, yielding=0.2, full=0.1, inertia=0.5)

    def levels(clip: np.ndarray) -> list[float]:
        follower = Follower(StreamInputs(follow=clip, following=settings), small.autoencoder, SIZE, 12, chunk=3)
        found = [follower(index) for index in range(10)]
        assert found[9] is None
        return [entering[1] for entering in found[:9:3] if entering is not None]

    assert levels(still) == [0.8, 0.8, 0.8]
    assert levels(moving) == pytest.approx([0.7, 0.65, 0.625])  # half way to 0.6 with every chunk


@pytest.mark.parametrize("given", [{}, {"image": CLIP[0]}, {"follow": CLIP}])
def test_computing_ahead_changes_no_byte(small: Model, given: dict[str, np.ndarray]) -> None:
    apart, ahead = (frames(small.session(PROMPT, seed=2, ahead=on, **given), 2.25) for on in (False, True))
    assert np.array_equal(apart, ahead)


def test_a_snapshot_of_a_stream_that_is_ahead(small: Model) -> None:
    whole = frames(small.session(PROMPT, seed=2), 5)
    with small.session(PROMPT, seed=2, ahead=True) as session:
        stream = session.stream()
        begun = np.concatenate([next(stream).frames for _ in range(2)])
        saved = session.snapshot()
    assert np.array_equal(begun, whole[:24])
    for ahead in (False, True):
        assert np.array_equal(frames(small.resume(saved, ahead=ahead), 3), whole[24:60])


def test_a_mistake_in_the_other_thread_reaches_the_caller(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with small.session(PROMPT, ahead=True) as session:
        stream = session.stream()
        next(stream)
        session.snapshot()  # waits for the chunk that is under way
        monkeypatch.setattr(session.state.rollout, "next_call", lambda: 1 / 0)
        next(stream)
        with pytest.raises(ZeroDivisionError):
            next(stream)


def test_files_are_read_at_the_frame_rate_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 24, SIZE) as video:
        video.write(np.repeat(np.arange(0, 240, 10, dtype=np.uint8), SIZE[0] * SIZE[1] * 3).reshape(24, *SIZE, 3))
    values = [int(picture.mean().round()) for picture in read_clip(path, 12)]
    assert len(values) == 12 and np.allclose(values, np.arange(0, 240, 20), atol=3)
    assert len(list(read_clip(path, 48))) == 48


def test_pictures_are_fitted(caplog: pytest.LogCaptureFixture, small: Model, tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 24:72] = 200
    assert fit_picture(wide, SIZE, "crop").min() > 190
    assert fit_picture(wide, SIZE, "stretch")[:, :8].max() < 10
    padded = fit_picture(wide, (64, 96), "pad")
    assert padded[:15].max() == 0 and padded[20:44, 30:60].min() > 190
    Image.fromarray(wide).save(tmp_path / "wide.png")
    with caplog.at_level(logging.INFO, logger="rollforce"):
        small.session(PROMPT, image=tmp_path / "wide.png").close()
    assert "96x32 cropped to 48x32; --fit takes pad, crop or stretch" in caplog.text
    assert np.array_equal(read_picture(Image.fromarray(wide)), wide)


@pytest.mark.parametrize(("given", "error", "words"), [
    ({"image": "clip.mp4"}, ConfigError, "for a clip use video="),
    ({"image": "none.png"}, ConfigError, "does not exist"),
    ({"video": "none.mp4"}, ConfigError, "does not exist"),
    ({"video": "a.png"}, ConfigError, "use image="),
    ({"video": CLIP[:3]}, ConfigError, "3 frames; this model needs 4"),
    ({"image": CLIP[0] / 255}, ShapeError, "uint8"),
    ({"follow": 7}, ConfigError, "an array"),
    ({"image": CLIP[0], "video": CLIP}, ConfigError, "image= and video= cannot be used together"),
    ({"image": CLIP[0], "fit": "squeeze"}, ConfigError, "squeeze"),
    ({"follow": CLIP, "strength": 0.0}, ConfigError, "nothing changes"),
    ({"follow": CLIP, "strength": 1.5}, ConfigError, r"strength must be .*got 1\.5"),
])  # fmt: skip
def test_what_cannot_be_given(small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given, error, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(CLIP[0]).save("a.png")
    with pytest.raises(error, match=words):
        small.session(PROMPT, **given)
