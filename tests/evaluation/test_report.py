"""Statistics, identity, reports and the program: what is the same must look so, what differs must be told apart."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from repository import ROOT
from small_model import make_model_folder

from rollforce.errors import ConfigError, ShapeError
from rollforce.evaluation import runner
from rollforce.evaluation.plots import save_curves
from rollforce.evaluation.report import StreamedVideo, compare, difference, interval, read_reports, summarise
from rollforce.evaluation.runner import EvaluationJournal
from rollforce.evaluation.tables import format_markdown, format_terminal
from rollforce.models.text.encoder import TextConfig, TextEncoder
from rollforce.video.contact_sheet import pack_frames, unpack_frames
from rollforce.world import Scene, render, sample_scene, wish_of
from rollforce.world.caption import KINDS, caption
from rollforce.world.eyes import Eyes
from rollforce.world.identity import identity, match_returns, sameness
from rollforce.world.oracle import drift_curve, score
from rollforce.world.scenes import COLOURS, SHAPES

# ------------------------------------------------------------------------------------------------------- statistics


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        prompts = rng.normal(0.3, 1, 30)
        values = prompts[:, None] + rng.normal(0, 0.5, (30, 3))
        found = interval(values.ravel(), np.repeat(np.arange(30), 3), draws=400)
        hits += found.low <= 0.3 <= found.high
    assert 176 <= hits <= 199


def test_more_streams_of_the_same_prompts_are_no_more_prompts() -> None:
    values = np.random.default_rng(0).normal(0, 1, 16)
    once, often = interval(values), interval(np.repeat(values, 8), np.repeat(np.arange(16), 8))
    assert often.mean == pytest.approx(once.mean) and (often.low, often.high) == pytest.approx((once.low, once.high))
    assert (once.prompts, often.prompts, often.streams) == (16, 16, 128)
    naive = interval(np.repeat(values, 8))
    assert naive.high - naive.low < 0.5 * (often.high - often.low)


def test_a_prompt_with_more_streams_counts_for_more() -> None:
    assert interval([1, 1, 1, 0], ["a", "a", "a", "b"]).mean == 0.75


def test_a_difference_is_separable_only_if_it_is_there() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(0, 1, 40)
    assert difference(ours + 0.2 + rng.normal(0, 0.1, 40), ours).separable  # far smaller than the spread of prompts
    luck = sum(difference(rng.normal(0, 1, 20), rng.normal(0, 1, 20), draws=400).separable for _ in range(100))
    assert luck <= 12


def test_few_prompts_separate_nothing() -> None:
    assert not difference([1.0] * 5, [0.0] * 5).separable and difference([1.0] * 6, [0.0] * 6).separable
    same = difference([0.5] * 9, [0.5] * 9)
    assert not same.separable and same.p == 1 and (same.low, same.high) == (0, 0)
    assert not difference([1.0] * 20, [0.0] * 20, ["a", "b"] * 10).separable  # many streams of two prompts


def test_statistics_of_nothing_and_of_unequal_pairs() -> None:
    with pytest.raises(ShapeError, match="0 values"):
        interval([])
    with pytest.raises(ShapeError, match="cannot be paired"):
        difference([1, 2], [1])


# --------------------------------------------------------------------------------------------------------- identity


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return Eyes.load()


def travelling(count: int) -> list[Scene]:
    """Scenes in which something leaves the picture and comes back."""
    scenes = (sample_scene(2 * 10**7 + seed, count=count, held_out=True) for seed in range(40))
    return [scene for scene in scenes if any(t.motion.split()[0] in ("drifts", "rolls") for t in scene.things)][:3]


def changed(scene: Scene, **changes: Callable[[str], str]) -> Scene:
    """The same scene with another first thing."""
    first = scene.things[0]
    other = replace(first, **{name: change(getattr(first, name)) for name, change in changes.items()})
    return replace(scene, things=(other, *scene.things[1:]))


def other_shape(shape: str) -> str:
    return SHAPES[(SHAPES.index(shape) + 1) % 4]


def other_colour(colour: str) -> str:
    return COLOURS[(COLOURS.index(colour) + 3) % 6]


def test_things_of_truth_stay_themselves(eyes: Eyes) -> None:
    found = [identity(eyes.look(render(scene, 0, 240))) for scene in travelling(1) + travelling(2)]
    assert all(each == {"identity": 1.0, "recognised": 1.0} for each in found)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("change", [{"shape": other_shape}, {"colour": other_colour}])
def test_a_thing_that_becomes_another_is_noticed(eyes: Eyes, count: int,
                                                 change: dict[str, Callable[[str], str]]) -> None:
    for scene in travelling(count)[:2]:
        video = np.concatenate([render(scene, 0, 120), render(changed(scene, **change), 120, 120)])
        look = eyes.look(video)
        assert sameness(look) == [True, True, False, False]
        assert identity(look)["identity"] == pytest.approx(1 / 3)


def test_a_thing_that_comes_back_as_another_is_noticed(eyes: Eyes) -> None:
    scene = next(s for s in travelling(1))
    true, false = render(scene, 0, 480), render(changed(scene, shape=other_shape), 0, 480)
    away = [not things or things[0].shape is None for things in eyes.look(true).things]
    laps = np.cumsum(np.diff(away, prepend=away[0]) & np.array(away))  # counts up as it leaves
    look = eyes.look(np.where((laps % 2 == 1)[:, None, None, None], false, true))
    back = match_returns(look)
    assert len(back) >= 4 and not any(back[:2])


def test_too_little_to_tell(eyes: Eyes) -> None:
    nothing = {"identity": None, "recognised": None}
    bouncing = next(s for s in (sample_scene(n, 1) for n in range(99)) if s.things[0].motion == "bounces")
    assert identity(eyes.look(render(bouncing, 0, 70))) == nothing
    assert identity(eyes.look(np.full((150, 64, 64, 3), 128, np.uint8)))["recognised"] is None


def test_both_things_right(eyes: Eyes) -> None:
    for scene in travelling(2):
        video = render(scene, 0, 96)
        assert score(video, wish_of(scene), eyes=eyes).both == 1
        assert score(video, wish_of(changed(scene, shape=other_shape)), eyes=eyes).both == 0
        alone = replace(scene, things=scene.things[:1])
        assert score(render(alone, 0, 96), wish_of(scene), eyes=eyes).both == 0
        assert score(video, wish_of(alone), eyes=eyes).both is None


def test_drift_over_time() -> None:
    first = np.random.default_rng(0).integers(60, 120, (30, 16, 16, 3)).astype(np.uint8)
    curve = drift_curve(np.concatenate([first, first, first * 2]), [slice(0, 30), slice(30, 60), slice(60, 90)])
    assert curve[0] == curve[1] and set(curve[0].values()) == {1.0}
    assert curve[2]["luma"] == pytest.approx(2, abs=0.02) and curve[2]["motion"] == pytest.approx(2, abs=0.02)


# ---------------------------------------------------------------------------------------------------------- reports


def streams(run: str, shape: float = 0.8, loss: float = 0.0, prompts: int = 12, seeds: int = 2) -> list[StreamedVideo]:
    """Made-up results: `shape` on average, and `loss` less of it in the last 10 s; same prompts, same difficulty."""
    found = []
    for number in range(prompts):
        for repeat in range(seeds):
            rng = np.random.default_rng([number, repeat, len(run)])
            value = shape + 0.1 * np.sin(number) + 0.02 * rng.normal()
            curve = [{"shape": value - loss * n / 3, "drift.luma": 1 - loss * n / 3} for n in range(4)]
            parts = {"model": {"scene": 1.0, "shape": value, "seams.chunk_to_real": 1.2, "recognised": None},
                     "first_10s": {"scene": 1.0, "shape": value}, "truth": {"scene": 1.0, "shape": 1.0},
                     "last_10s": {"scene": 1.0, "shape": value - loss + 0.01 * rng.normal()}}
            found.append(
                StreamedVideo(
                    run, number, repeat, f"prompt {number}", number + 100 * repeat, 20.0, 2.0, "", parts, curve
                )
            )
    return found


def test_summary_keeps_every_stream_and_tells_what_was_lost() -> None:
    report = summarise(streams("a", loss=0.3))
    assert report["shape"]["low"] < report["shape"]["mean"] < report["shape"]["high"]
    assert report["seams"]["chunk_to_real"]["mean"] == 1.2 and "recognised" not in report
    lost = report["change_by_the_end"]["shape"]
    assert lost["high"] < -0.25 and lost["separable"] and not report["change_by_the_end"]["scene"]["separable"]
    assert [(w["from_s"], w["to_s"]) for w in report["curve_5s"]] == [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert report["curve_5s"][3]["shape"]["mean"] == pytest.approx(report["shape"]["mean"] - 0.3, abs=1e-3)
    assert len(report["prompts"]) == 24 and report["prompts"][1]["last_10s"]["scene"] == 1


def test_two_runs_are_compared_stream_by_stream() -> None:
    plain, better, leaky = (summarise(streams("x", *numbers)) for numbers in ((0.8, 0.0), (0.85, 0.0), (0.8, 0.2)))
    found = compare(better, plain)
    assert found["shape"]["mean"] == pytest.approx(0.05, abs=1e-3) and found["shape"]["separable"]
    assert plain["shape"]["high"] > better["shape"]["low"]  # the intervals overlap: only pairs can tell
    assert not found["change_by_the_end"]["shape"]["separable"]
    assert compare(leaky, plain)["change_by_the_end"]["shape"]["mean"] == pytest.approx(-0.2, abs=1e-3)
    shuffled = {**plain, "prompts": plain["prompts"][::-1]}
    assert compare(better, shuffled)["shape"]["mean"] == found["shape"]["mean"]


def test_reports_of_other_streams_are_not_compared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'only one has "prompt 4", seed 4, 20 s.*same --prompts'):
        compare(summarise(streams("a", prompts=4)), summarise(streams("b", prompts=5)))
    (tmp_path / "old.json").write_text('{"scene": {"mean": 1}, "prompts": [{"prompt": "a"}]}')
    for name in ("old.json", "missing.json"):
        with pytest.raises(ConfigError, match=name):
            read_reports([tmp_path / name])


def test_saved_reports_get_names_of_their_own(tmp_path: Path) -> None:
    report = summarise(streams("a", prompts=2))
    (tmp_path / "one.json").write_text(json.dumps(report))
    (tmp_path / "two.json").write_text(json.dumps({"runs": {"one": report, "sink": report}}))
    names = list(read_reports([tmp_path / "one.json", tmp_path / "two.json"]))
    assert names == ["one", f"{tmp_path}/two.json:one", "sink"]


def test_tables_mark_what_is_separable() -> None:
    runs = {"plain": summarise(streams("plain")), "better": summarise(streams("better", 0.85))}
    text = format_markdown("python x", runs, {"better": compare(runs["better"], runs["plain"])})
    row = next(line for line in text.split("Paired differences")[1].splitlines() if line.startswith("| better"))
    assert row.startswith("| better | 0.00 | **+0.05 [") and text.startswith("`python x`\n")
    assert "| plain | 12 x 2 | 20 | 1.00 |" in text and "up to 25% of all" in text
    header, *rows = format_terminal(runs).splitlines()
    assert header.split() == ["plain", "better", "truth"] and rows[-1].split()[0] == "seams.chunk_to_real"


def test_curves_become_a_picture_and_nothing_else_changes(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    runs = {"plain": summarise(streams("plain")), "leaky": summarise(streams("leaky", loss=0.4))}
    save_curves(runs, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    for ink in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(picture.astype(int) - ink).max(1) < 8).sum() > 100
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(ConfigError, match="10 s"):
        save_curves({"short": {"curve_5s": []}}, tmp_path / "b.png")


def test_frames_survive_as_text() -> None:
    video = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3)).astype(np.uint8)
    assert np.array_equal(unpack_frames(pack_frames(video, 3), 3), video[[0, 4, 8]])


# ---------------------------------------------------------------------------------------------------------- journal


def test_journal_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, made = tmp_path / "a.jsonl", streams("a", prompts=2, seeds=1)
    journal = EvaluationJournal(path, {"seconds": 20, "run a": ["x", "y"]})
    for stream in made:
        journal.add(stream)
    with path.open("a") as file:
        file.write('{"run": "a", "number": 2, "rep')  # killed in the middle of a line
    again = EvaluationJournal(path, {"seconds": 20, "run b": ["z"]}, resume=True)
    assert again.streams == made and again.has("a", 1, 0) and not again.has("b", 1, 0) and not again.has("a", 2, 0)
    assert EvaluationJournal(path, {"seconds": 20, "run a": ["x", "y"]}, resume=True).streams == made
    with pytest.raises(ConfigError, match=r"run a: .*'y'.* there, .*'q'.* now"):
        EvaluationJournal(path, {"seconds": 20, "run a": ["x", "q"]}, resume=True)
    assert EvaluationJournal(path, {"seconds": 20}).streams == [] and len(path.read_text().splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------- program


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_program", ROOT / "infer/evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_program"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model_folder(tmp_path_factory.mktemp("models") / "small")
    TextEncoder(TextConfig(KINDS, text_dim=16, text_len=24, layers=1, heads=2)).save(folder / "text")
    return folder


def test_runs_by_name(program: ModuleType) -> None:
    sink = "cache=[{kind: sink, latents: 3}, {kind: window, latents: 3}]"
    assert program.parse_run("plain=") == ("plain", runner.Configuration())
    assert program.parse_run("a=runs/b:chunkwise") == ("a", runner.Configuration("runs/b", "chunkwise"))
    assert program.parse_run(f"s=:rolling {sink}  layout.levels=[1, 0.5]") == (
        "s", runner.Configuration(None, "rolling", (sink, "layout.levels=[1, 0.5]")))
    for wrong in ("plain", "=tiny", "a=tiny rolling"):
        with pytest.raises(ConfigError, match="is not NAME="):
            program.parse_run(wrong)


def test_two_runs_from_end_to_end(program: ModuleType, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs.yaml").write_text("runs:\n  plain: {}\n  chunks: {stream: chunkwise}\n")
    fixed = ["--model", str(model), "--seconds", "10", "--workers", "1", "--things", "2", "--runs",
             str(tmp_path / "runs.yaml"), "--json", str(tmp_path / "a.json"), "layout.levels=[1, 0.5]"]

    def evaluate(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["infer/evaluate.py", *arguments])
        program.main()
        return capsys.readouterr().out

    evaluate(*fixed, "--prompts", "1")
    text = evaluate(*fixed, "--prompts", "1", "--seeds", "2", "--resume", "--sheet", str(tmp_path / "a.png"), "--plot",
                    str(tmp_path / "p.png"), "--markdown", str(tmp_path / "a.md"))
    report = json.loads((tmp_path / "a.json").read_text())
    assert list(report["runs"]) == ["plain", "chunks"] and "chunks - plain, paired" in text
    assert report["runs"]["chunks"]["run"]["overrides"] == ["layout.levels=[1, 0.5]"]
    for run in report["runs"].values():
        assert [(row["number"], row["seed"]) for row in run["prompts"]] == [(0, 0), (0, 1_000_000)]
        assert run["truth"]["both"]["mean"] == run["truth"]["identity"]["mean"] == 1 and len(run["curve_5s"]) == 2
    assert report["differences"]["chunks"]["scene"]["streams"] == 2
    assert "--seeds 2" in (tmp_path / "a.md").read_text().splitlines()[0]
    both, one = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "a_chunks.png"))
    assert both.shape[1] == one.shape[1] and both.shape[0] > 1.5 * one.shape[0] and (tmp_path / "p.png").is_file()

    monkeypatch.setattr(runner, "run_job", lambda job: pytest.fail("streamed again what was finished"))
    assert evaluate(*fixed, "--prompts", "1", "--seeds", "2", "--resume") == text
    assert evaluate("--compare", str(tmp_path / "a.json")) == text


def test_streams_that_share_their_calls_are_the_same(program: ModuleType, model: Path) -> None:
    scene = sample_scene(1, count=1)
    tasks = [runner.EvaluationTask(0, repeat, scene, caption(scene, 1, full=True), repeat) for repeat in range(3)]
    run = runner.Configuration(str(model), "chunkwise")
    alone, shared = (
        list(
            runner.stream_whole(runner.load_model(run), runner.EvaluationJob("a", run, "", tasks, 4.0, together, False))
        )
        for together in (1, 2)
    )
    for (task, video, _), (same_task, same_video, _) in zip(alone, shared, strict=True):
        assert task == same_task and np.array_equal(video, same_video)
    assert not np.array_equal(alone[0][1], alone[1][1])


def test_the_ends_alone_are_judged_as_within_the_whole(program: ModuleType, model: Path) -> None:
    scene = sample_scene(1, count=1)
    tasks = [runner.EvaluationTask(0, repeat, scene, caption(scene, 1, full=True), repeat) for repeat in range(2)]
    run = runner.Configuration(str(model), "chunkwise")
    whole, ends = (
        list(
            runner.run_job(
                runner.EvaluationJob("a", run, runner.describe_model(run)["weights"], tasks, 25.0, 2, only_ends)
            )
        )
        for only_ends in (False, True)
    )
    for stream, short in zip(whole, ends, strict=True):
        assert short.parts["first_10s"] == pytest.approx(stream.parts["first_10s"], abs=1e-3)
        assert short.parts["last_10s"] == pytest.approx(stream.parts["last_10s"], abs=1e-3)
        assert short.parts["model"].items() >= short.parts["last_10s"].items()
    assert whole[0].parts["first_10s"] != whole[0].parts["last_10s"]


def test_wrong_settings_end_before_anything_is_streamed(program: ModuleType, model: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_job", lambda job: pytest.fail("streamed"))
    for arguments, message in ((["--run", "a=", "--run", "b= layout.nonsense=1"], "nonsense"),
                               (["--run", "a=", "--run", "a="], "name of its own")):
        monkeypatch.setattr(sys, "argv", ["infer/evaluate.py", "--model", str(model), "--workers", "1", *arguments])
        with pytest.raises(ConfigError, match=message):
            program.main()
