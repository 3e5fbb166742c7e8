"""One writer at a time, over processes; whole files; no links."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from frames import read_frames
from repository import ROOT
from small_model import make_model_folder
from train_scripts import command

from rollforce.checkpoints.outputs import check_plain, hold, replacing, write_whole
from rollforce.cli.record import Request
from rollforce.cli.render import render
from rollforce.cli.resume import snapshot_path
from rollforce.errors import ConfigError
from rollforce.streaming.load import load

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
HOLD = ("import sys, time; from pathlib import Path; from rollforce.checkpoints.outputs import hold\n"
        "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(float(sys.argv[2]))")  # fmt: skip


@contextmanager
def held_elsewhere(path: Path, seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, str(seconds)], stdout=subprocess.PIPE, text=True,
                               env=ENVIRONMENT)  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with held_elsewhere(tmp_path / "ball.mp4") as other:
        for same in (tmp_path / "ball.mp4", tmp_path / "ball.json", tmp_path / "link" / "ball.mp4"):
            with pytest.raises(ConfigError) as caught, hold(same):
                pass
            assert str(caught.value) == (f"{same} is being written by process {other.pid}: wait until it has ended, "
                                         "stop it, or choose another name.")  # fmt: skip
        with hold(tmp_path / "star.mp4"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / ".ball.lock").exists()
        with hold(tmp_path / "ball.mp4"), hold(tmp_path / "ball.mp4"):  # what the dead left binds nobody
            assert (tmp_path / ".ball.lock").read_text().split()[0] == str(os.getpid())
    assert [path.name for path in tmp_path.iterdir()] == ["link"], "no lock stays behind"


def test_one_may_wait_for_the_other(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "a", 0.3), hold(tmp_path / "a", wait_s=30):
        pass


def test_a_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold(tmp_path / "a"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_files_are_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "ä")
    with pytest.raises(OSError), replacing(path) as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == "ä".encode() and [each.name for each in tmp_path.iterdir()] == ["a.json"]
    threads = [threading.Thread(target=write_whole, args=(path, bytes([n]) * 100_000)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_bytes())) == 1 and path.stat().st_size == 100_000


def test_links_and_devices_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "is a symbolic link (to mine)"), ("pipe", "is a device, a pipe or a socket")):
        with pytest.raises(ConfigError) as caught:
            write_whole(tmp_path / name, "x")
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="is a device"):
        check_plain(Path("/dev/null"))
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "link").is_symlink()
    check_plain(tmp_path / "mine")
    check_plain(tmp_path / "nothing")


# -- pairs of real commands --------------------------------------------------------------------------------------------

PAIRS = 20
RENDER = ["-m", "rollforce", "render"]


def start_two(words: list[str], folder: Path) -> list[tuple[int, str]]:
    """Start a command twice at once; return each one's exit code and what it said."""
    both = [subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, env=ENVIRONMENT, cwd=folder) for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=600)[0] for process in both]
    return [(process.returncode, text) for process, text in zip(both, said, strict=True)]


def one_worked(ends: list[tuple[int, str]]) -> None:
    refused = [text for code, text in ends if code]
    assert len(refused) == 1, ends
    assert "is being written by process" in refused[0] or "exist" in refused[0] or "holds a run" in refused[0], refused
    assert "Traceback" not in refused[0]


@pytest.mark.slow
def test_of_two_on_one_output_one_works(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "small", world=True)
    (tmp_path / "two.txt").write_text("a red ball\na blue star\n")
    common = ["--model", model, "-s", "3", "--scale", "1"]
    for number in range(PAIRS):
        one_worked(start_two([*RENDER, "a red ball", "--seed", "1", "-o", f"a{number}.mp4", *common], tmp_path))
        assert len(read_frames(tmp_path / f"a{number}.mp4")) == 36
    for number in range(PAIRS // 4):
        one_worked(start_two([*RENDER, "--prompts", "two.txt", "--out", f"b{number}", *common], tmp_path))
        listed = [json.loads(line) for line in (tmp_path / f"b{number}" / "manifest.jsonl").read_text().splitlines()]
        assert [line["status"] for line in listed] == ["done", "done"]
        assert all(len(read_frames(tmp_path / f"b{number}" / line["video"])) == 36 for line in listed)
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.slow
def test_of_two_that_go_on_with_one_video_none_harms_the_other(tmp_path: Path) -> None:
    request = Request("a red ball", seconds=4, scale=1, model=str(make_model_folder(tmp_path / "small", world=True)))
    for number in range(PAIRS // 4):
        video = tmp_path / f"a{number}.mp4"
        render(load(request.model), request, video, stopping=lambda: True)
        ends = start_two([*RENDER, "--resume", video], tmp_path)
        late = [text for code, text in ends if "is complete and kept" in text]  # the other was there before
        assert late or one_worked(ends) is None
        assert len(read_frames(video)) == 48 and not snapshot_path(video).exists()


@pytest.mark.slow
def test_of_two_on_one_training_folder_or_journal_one_works(tmp_path: Path) -> None:
    model = make_model_folder(tmp_path / "small", world=True)
    for number in range(PAIRS // 4):
        out = tmp_path / f"run{number}"
        one_worked(start_two(command(model, "autoencoder", out, "run.steps=2"), tmp_path))
        assert len((out / "metrics.jsonl").read_text().splitlines()) == 2 and (out / "latest").is_file()
        report = tmp_path / f"scores{number}.json"
        words = ["--model", model, "--prompts", "1", "--seconds", "1", "--workers", "1", "--json", report]
        one_worked(start_two([ROOT / "infer" / "evaluate.py", *words], tmp_path))
        assert json.loads(report.read_text())["prompts"]
        assert len(report.with_suffix(".jsonl").read_text().splitlines()) == 2
    assert not list(tmp_path.rglob("*.lock"))
