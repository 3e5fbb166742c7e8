"""What is measured of a stream, and the levels it goes down and up: by a clock that is read off a table."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_model import FOR_ANY_MODEL, make_model_folder

from rollforce.cache.visibility import Visibility
from rollforce.config import build, resource
from rollforce.engine.quality import QualityLevel, quality_levels
from rollforce.engine.settings import StreamSettings
from rollforce.engine.transitions import Cut, Keep
from rollforce.errors import ConfigError
from rollforce.streaming.events import Cue, Timings
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.streaming.pace import RECENT, LatencyMeter, LevelChooser, Pace, percentile
from rollforce.streaming.session import Session
from rollforce.streaming.snapshot import Snapshot

PROMPT = "a red ball bounces over green hills"
LAYOUTS = {
    "rolling": [],
    "chunkwise": ["layout.kind=chunkwise"],
    "partitioned": ["layout.kind=partitioned", "layout.micro=2"],
}


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("small"), world=True)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    tiers = "cache=[{kind: sink, latents: 2}, {kind: window, latents: 4}]"
    return load(folder, overrides=[*LAYOUTS[request.param], tiers])


@contextmanager
def taking(model: Model, clock: Clock, seconds: list[float]) -> Iterator[None]:
    """Each latent of a model call moves the clock by `seconds[0]`."""

    def moved(module: object, args: tuple) -> None:
        clock.now += seconds[0] * args[0].shape[1]

    hook = model.transformer.register_forward_pre_hook(moved)
    try:
        yield
    finally:
        hook.remove()


def pictures(session: Session, seconds: float) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in session.stream(seconds)])


# -- measures ----------------------------------------------------------------------------------------------------


def test_measures_of_a_stream_by_hand():
    clock = Clock()
    meter = LatencyMeter(fps=10, grace=0.1, clock=clock)
    found = []
    for wait, takes in ((0, 2.0), (0, 0.5), (0.4, 0.3), (5, 0.05), (0, 1.2)):  # ten frames each: 1 s to show
        clock.now += wait
        asked = clock.now
        clock.now += takes
        found.append(meter.add(asked, 10, Timings(takes - 0.01, 0.01)))
    # shown until 3.0; until 4.0, as it came at 2.5; 5.0 (at 3.2); a pause until 8.2, there at 8.25, until 9.25; at 9.45
    assert [late for late, _ in found] == [False, False, False, False, True]
    assert [load for _, load in found] == pytest.approx([2.0, 0.5, 0.3, 0.05, 1.2])
    measures = meter.measures
    assert (measures.chunks, measures.frames, measures.misses) == (5, 50, 1)
    assert measures.first_frame_s == pytest.approx(2.0)
    assert measures.latency_p50_s == pytest.approx(0.5) and measures.latency_p99_s == pytest.approx(2.0)
    assert measures.times_real_time == pytest.approx(5 / 4.05)


def test_who_is_late_once_is_not_late_for_ever():
    clock = Clock()
    meter = LatencyMeter(10, 0.0, clock)
    late = []
    for takes in (1.0, 1.5, 1.0, 1.0, 1.01):
        asked = clock.now
        clock.now += takes
        late.append(meter.add(asked, 10, Timings(takes, 0))[0])
    assert late == [False, True, False, False, True]  # the player stood still for what was late, and goes on from there


def test_percentiles_are_of_recent_chunks_and_of_bounded_memory():
    clock = Clock()
    meter = LatencyMeter(10, 0.0, clock)
    for takes in [9.0] * 50 + [1.0] * RECENT:
        asked = clock.now
        clock.now += takes
        meter.add(asked, 10, Timings(takes, 0))
    assert meter.measures.latency_p99_s == pytest.approx(1) and len(meter.recent) == RECENT
    assert [percentile([3, 1, 2, 4], share) for share in (0.5, 0.51, 0.95, 1)] == [2, 3, 4, 4]
    assert percentile([], 0.5) is None


def test_a_session_is_measured(model):
    clock = Clock()
    with taking(model, clock, [0.01]), model.session(PROMPT, pace=Pace(clock=clock)) as session:
        assert session.measures.first_frame_s is None
        pictures(session, 3)
        measures = session.measures
    assert measures.chunks == 3 and measures.frames == 36 and measures.misses == 0 and measures.fps == 12
    assert measures.decode_s == 0 and measures.denoise_s == pytest.approx(clock.now - 100)


# -- choosing a level --------------------------------------------------------------------------------------------------

LEVELS = (QualityLevel(4), QualityLevel(3), QualityLevel(2), QualityLevel(2, 0.5))


def walked(pace: Pace, chunks: str, at: int = 0) -> list[int]:
    """The level of each chunk; a change comes at once. `!` late, `.` in time, `_` in time with much left."""
    chooser, arrived, levels = LevelChooser(pace, LEVELS, at), None, []
    for chunk in chunks:
        levels.append(chooser.at if arrived is None else LEVELS.index(arrived))
        arrived = chooser.choose(chunk == "!", {"!": 1.5, ".": 0.8, "_": 0.4}[chunk], arrived)
    return levels


@pytest.mark.parametrize(("chunks", "levels"), [
    ("....................", "00000000000000000000"),
    ("____________________", "00000000000000000000"),  # there is nothing above
    (".!...!...!...!", "00000000000000"),  # one of four is forgiven
    (".!.!......", "0000111111"),
    ("!!!!!!!!!!!!!!!!", "0011122233333333"),  # the first on a level pays for the change; there is nothing below
    ("!!_____________", "001111111110000"),  # down; that one; eight calm ones
    ("!!______._______", "0011111111111111"),  # not calm for eight on end
    ("!!____!_________", "0011111111111110"),  # nor late
])  # fmt: skip
def test_the_level_goes_down_and_up_where_it_should(chunks, levels):
    assert "".join(map(str, walked(Pace(), chunks))) == levels


def test_nothing_is_counted_while_a_change_is_under_way():
    chooser = LevelChooser(Pace(), LEVELS)
    assert [chooser.choose(True, 2.0) for _ in range(6)] == [None, LEVELS[1], None, None, None, None]
    assert chooser.choose(True, 2.0, LEVELS[1]) is None and chooser.at == 1
    assert [chooser.choose(True, 2.0) for _ in range(2)] == [None, LEVELS[2]]


def test_levels_are_derived_from_the_stream():
    def of(*overrides: str) -> tuple[QualityLevel, ...]:
        return quality_levels(build(StreamSettings, resource("configs/stream/chunkwise.yaml"), overrides=overrides))

    assert of() == (QualityLevel(4), QualityLevel(3), QualityLevel(2), QualityLevel(2, 0.5))
    assert of("cache=[]") == (QualityLevel(4), QualityLevel(3), QualityLevel(2))
    assert of("layout.levels=[1]") == (QualityLevel(1), QualityLevel(1, 0.5))
    assert of("layout.kind=partitioned", "layout.micro=2") == (QualityLevel(4), QualityLevel(2), QualityLevel(2, 0.5))


@pytest.mark.parametrize("preset", FOR_ANY_MODEL)
def test_no_level_goes_below_what_is_pinned_nor_changes_memory(preset):
    settings = build(StreamSettings, resource(f"configs/stream/{preset}.yaml"))
    levels = quality_levels(settings)
    assert levels[0].apply(settings) == settings
    for level in levels[1:]:
        less = level.apply(settings)  # which checks the budget
        assert less.cache == settings.cache and less.layout.build().shift == settings.layout.build().shift
        assert set(less.layout.levels) <= set(settings.layout.levels)
        assert less.layout.levels[0] == settings.layout.levels[0]
        held = {tier.kind: tuple(range(tier.latents)) for tier in settings.tiers}
        for name, own, left in (("denoise", settings.layout.build().slots, less.layout.build().slots),
                                ("commit", settings.layout.build().shift, less.layout.build().shift)):  # fmt: skip
            before, after = getattr(settings.stepping, name), getattr(less.stepping, name)
            sees = before.visible(held, own), after.visible(held, left)
            if level.past == 1:
                assert sees[0] == sees[1]
            assert all(sees[1].get(region) == held.get(region) for region in before.pinned)


def test_half_the_past_is_the_newest_half():
    settings = build(StreamSettings, resource("configs/stream/chunkwise.yaml"), overrides=[
        "cache=[{kind: sink, latents: 2}, {kind: window, latents: 6}]"])  # fmt: skip
    sight = QualityLevel(4, 0.5).apply(settings).stepping.denoise
    held = {"sink": (0, 1), "window": (10, 11, 12, 13, 14, 15)}
    assert sight == Visibility(budget=8) and sight.visible(held, 3) == {"sink": (0, 1), "window": (13, 14, 15)}


# -- streams -----------------------------------------------------------------------------------------------------


def levels_shown(session: Session, seconds: float, clock: Clock | None = None) -> tuple[np.ndarray, list]:
    """Frames, and the changes of pace in them. With a clock, each chunk is asked for when 1 s is left to show."""
    chunks = []
    for chunk in session.stream(seconds):
        chunks.append(chunk)
        if clock is not None:
            clock.now = max(clock.now, session.pace.meter.until - 1)
    events = [event for chunk in chunks for event in chunk.events if event.kind == "pace"]
    return np.concatenate([c.frames for c in chunks]), [(e.chunk, e.frame, e.cue.quality) for e in events]


def test_a_late_stream_does_less_and_more_again_and_its_cues_tell(model):
    clock, cost = Clock(), [0.001]
    settings, layout = model.stream_settings, model.stream_settings.layout
    per_chunk = layout.build().ticks * layout.build().slots + 3  # latents through the model
    pace = Pace(clock=clock, calm=3)
    with taking(model, clock, cost), model.session(PROMPT, seed=3, pace=pace) as session:
        easy, none = levels_shown(session, 4, clock)
        assert not none and not session.cues
        cost[0] = 1.2 / per_chunk  # a chunk of 1 s takes 1.2
        hard, went_down = levels_shown(session, 5, clock)
        cost[0] = 0.001
        rest, went_up = levels_shown(session, 6, clock)
        cues, measures = session.cues, session.measures
    levels = quality_levels(settings)
    assert [level for *_, level in went_down] == [levels[1]] and went_down[0][0] == 6  # after two that were late
    assert [level for *_, level in went_up] == [levels[0]]
    assert measures.misses == 2 + (layout.kind == "rolling")  # where three chunks in flight are begun anew
    assert [frame for _, frame, _ in (*went_down, *went_up)] == [round(cue.at * 12) for cue in cues]
    assert all(chunk * 12 == frame for chunk, frame, _ in (*went_down, *went_up))
    shown = np.concatenate([easy, hard, rest])
    with model.session(PROMPT, seed=3) as plain, model.session(PROMPT, seed=3, cues=cues) as again:
        undisturbed, repeated = pictures(plain, 15), pictures(again, 15)
        assert again.cues == cues
        assert again.state.rollout.cache.held() == plain.state.rollout.cache.held()
    assert np.array_equal(repeated, shown)  # no clock, the same bytes
    assert np.array_equal(undisturbed[: 6 * 12], shown[: 6 * 12])
    assert not np.array_equal(undisturbed[6 * 12 : 7 * 12], shown[6 * 12 : 7 * 12])


def test_a_stream_that_is_ahead_says_when_it_changed(model):
    """One that can never be in time, whatever the machine."""
    with model.session(PROMPT, seed=3, ahead=True, pace=Pace(fps=1e6, grace=0)) as session:
        shown, changes = levels_shown(session, 14)
        cues, measures = session.cues, session.measures
    assert [level for *_, level in changes] == list(quality_levels(model.stream_settings))[1:] and measures.misses == 13
    with model.session(PROMPT, seed=3, cues=cues) as again:
        assert np.array_equal(pictures(again, 14), shown)


@pytest.mark.parametrize("level", [QualityLevel(2), QualityLevel(2, 0.5), QualityLevel(4, 0)])
def test_a_stream_on_a_level_is_the_stream_of_those_settings(model, level):
    less = replace(model, stream_settings=level.apply(model.stream_settings))
    with (
        at_level(model, level) as session,
        less.session(PROMPT, seed=3) as plain,
        at_level(model, QualityLevel(4)) as full,
    ):
        shown = pictures(session, 3)
        assert np.array_equal(shown, pictures(plain, 3)) and not np.array_equal(shown, pictures(full, 3))


def at_level(model: Model, level: QualityLevel) -> Session:
    return model.session(PROMPT, seed=3, cues=[Cue(0, quality=level)])


def test_the_highest_level_is_the_stream_itself(model):
    with at_level(model, QualityLevel(4)) as session, model.session(PROMPT, seed=3) as plain:
        assert np.array_equal(pictures(session, 3), pictures(plain, 3))


def test_what_a_level_did_is_forgotten_with_memory(model):
    """Down and up again, then a cut: from there on it is the stream that was never slower."""
    cut = Cue(4, PROMPT, Cut())
    slower = latents(model, [Cue(1, quality=QualityLevel(2, 0.5)), Cue(3, quality=QualityLevel(4)), cut])
    plain = latents(model, [cut])  # not frames: a decoder remembers what it drew before
    assert np.array_equal(slower[4:], plain[4:]) and np.array_equal(slower[:1], plain[:1])
    assert not any(np.array_equal(slower[i], plain[i]) for i in (1, 2, 3))


def latents(model: Model, cues: list[Cue]) -> np.ndarray:
    with model.session(PROMPT, seed=3, cues=cues) as session:
        return np.stack([session.driver.take(True).commit.latents_BTCHW.numpy() for _ in range(7)])


def test_a_snapshot_and_a_fork_keep_the_level(model, tmp_path):
    cues = [Cue(1, quality=QualityLevel(2, 0.5)), Cue(5, quality=QualityLevel(4))]
    with model.session(PROMPT, seed=3, cues=cues) as session:
        whole = pictures(session, 8)
    with model.session(PROMPT, seed=3, cues=cues, remember=3) as session:
        pictures(session, 3)
        session.snapshot().save(tmp_path / "stream")
        with session.fork() as twin:
            assert np.array_equal(pictures(twin, 5), whole[36:])
        assert np.array_equal(pictures(session, 4), whole[36:84])
        session.rewind(3)  # back before it went up
        assert np.array_equal(pictures(session, 4), whole[48:])
    with model.resume(Snapshot.load(tmp_path / "stream")) as again:
        assert np.array_equal(pictures(again, 5), whole[36:])


def test_a_paced_stream_is_resumed_on_its_level(model):
    clock = Clock()
    with model.session(PROMPT, cues=[Cue(0, quality=QualityLevel(2))]) as session:
        pictures(session, 1)
        saved = session.snapshot()
    with taking(model, clock, [0.001]), model.resume(saved, pace=Pace(clock=clock, calm=2)) as again:
        _, changes = levels_shown(again, 8)
    ladder = quality_levels(model.stream_settings)
    assert [level for *_, level in changes] == list(reversed(ladder[: ladder.index(QualityLevel(2))]))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Pace(fps=0), "above 0"),
    (lambda: Pace(grace=-1), "grace"),
    (lambda: Pace(misses=5), "among"),
    (lambda: Pace(ample=1.0), "ample"),
    (lambda: Pace(levels=()), "at least one"),
    (lambda: QualityLevel(0), "at least 1"),
    (lambda: QualityLevel(1, 1.5), "share"),
    (lambda: QualityLevel(5).apply(StreamSettings()), "has 4"),
    (lambda: Pace(levels=(QualityLevel(9),)).levels_of(StreamSettings()), "has 4"),
])  # fmt: skip
def test_what_cannot_be_paced(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_stream_that_follows_a_video_keeps_its_pace(model):
    clip = np.zeros((30, 32, 48, 3), np.uint8)
    with pytest.raises(ConfigError, match="quality level"):
        model.session(PROMPT, follow=clip, cues=[Cue(0, transition=Keep(), quality=QualityLevel(2))])
    with pytest.raises(ConfigError, match="has its pace"):
        model.session(PROMPT, follow=clip, pace=Pace())
