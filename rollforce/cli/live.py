"""What `rollforce live` does: a stream plays in the terminal, and changes as it is told; without one, from a pipe."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from rollforce.checkpoints.outputs import check_plain, hold
from rollforce.cli.jobs import split_overrides
from rollforce.cli.options import LiveOptions
from rollforce.cli.player import Player
from rollforce.cli.record import Request, as_setting, record_path
from rollforce.errors import ConfigError, spell_out
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.streaming.load import load
from rollforce.streaming.model import Model
from rollforce.video.duration import parse_duration
from rollforce.video.outputs import check_output
from rollforce.video.screen import Screen
from rollforce.video.size import parse_size
from rollforce.video.values import check_file_name, check_prompt, check_seconds, draw_seed
from rollforce.video.writer import default_scale

PIPED_S = 20.0  # seconds of video where nobody is there to end it
Tell = Callable[[str], None]


def live(options: LiveOptions, tell: Tell) -> None:
    """Play a stream until its end, and `tell` what came of it. ConfigError, and what loading raises."""
    request, path = read_request(options), find_free(check_file_name(options.output, "-o", "live.mp4"))
    seconds = _read_seconds(options.seconds, None if sys.stdin.isatty() else PIPED_S)
    if path.suffix.lower() not in (".mp4", ".webm"):
        raise ConfigError(f"-o {path} must be a video that can be gone on with: name it .mp4 or .webm.")
    check_output(path)
    check_plain(path)
    with hold(path):
        tell("\n".join(_show(options, request, path, seconds, tell)))


def _show(options: LiveOptions, request: Request, path: Path, seconds: float | None, tell: Tell) -> list[str]:
    """Play it, and return what is to be said at the end."""
    inbox = SimpleQueue[str]()
    typing, watching = sys.stdin.isatty(), sys.stdout.isatty() and not options.as_json
    _replace_undecodable()
    screen = Screen(sys.stdout) if watching else None
    model = _load(request)
    say = screen.say if screen else (lambda text: None) if options.as_json else _line_by_line(tell)
    player = Player(model, _complete(request, model), path, say, seconds=seconds,
                    remember=_read_back(options.back), live=typing or watching)  # fmt: skip
    with _listen(screen, inbox, typing), suppress(KeyboardInterrupt):
        play(player, inbox, screen, typing or watching)
    player.over = True
    summary = list(player.summary())
    player.close()
    record = record_path(path)
    if options.as_json:
        return [json.dumps(json.loads(record.read_text(encoding="utf-8")))] if record.exists() else []
    return summary


def read_request(options: LiveOptions) -> Request:
    """Return what was typed as the request of a record. ConfigError."""
    words, overrides = split_overrides(options.words)
    if len(words) != 1:
        raise ConfigError(f'got {len(words)} prompts; type one in quotes: rollforce live "a red ball rolls left".')
    runtime = {name: as_setting(value) for name, value in options.running.items()}
    names = ("stream", "window", "model", "device", "dtype", "seed", "enhance", "enhance_model")
    typed = {name: value for name in names if (value := getattr(options, name)) is not None}
    size = parse_size(options.size) if options.size else None
    typed.setdefault("seed", draw_seed())
    _read_back(options.back)
    return Request(check_prompt(words[0]), overrides=overrides, size=size, running=RuntimeOptions(**runtime), **typed)


def find_free(path: Path) -> Path:
    """Return the path, or the next one like it that does not exist."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], others) if not each.exists())


def _read_seconds(text: str | None, default: float | None) -> float | None:
    if text is None:
        return default
    seconds = check_seconds(parse_duration(text, "--seconds", endless=True), "--seconds", endless=True)
    return None if seconds == math.inf else seconds


def _read_back(text: str) -> float:
    return check_seconds(parse_duration(text, "--back"), "--back", zero=True)


def _load(request: Request) -> Model:
    return load(request.model, stream=request.stream, overrides=request.overrides, window=request.window,
                device=request.device, dtype=request.dtype, running=request.running, size=request.size)


def _complete(request: Request, model: Model) -> Request:
    size = request.size or model.size
    return replace(request, size=size, scale=default_scale(size), threads=model.threads)


# -- the show ----------------------------------------------------------------------------------------------------------


def play(player: Player, inbox: SimpleQueue[str], screen: Screen | None, live: bool) -> None:
    """Show the stream until its end. `live`: each frame in its time, else as fast as they come."""
    fps, due = player.model.fps, time.monotonic()
    obey(player, inbox, 0)
    while not player.over:
        if not player.begin().done():
            obey(player, inbox, 0.02)
            continue
        chunk = player.take()
        if chunk is None:
            return
        due = max(due, time.monotonic())
        for number, frame in enumerate(chunk.frames):
            left = (len(chunk.frames) - number) / fps
            if live and left <= player.safe_s:
                player.begin()
            if screen is not None and (number == 0 or time.monotonic() < due + 1 / fps):  # what is late is not drawn
                screen.show(frame, f"{chunk.pts + number / fps:5.1f} s · {chunk.prompt} · :help")
            due += 1 / fps
            if obey(player, inbox, max(0.0, due - time.monotonic()) if live else 0):
                break


def obey(player: Player, inbox: SimpleQueue[str], seconds: float) -> bool:
    """Do what is typed within the next `seconds`. Whether the stream jumped."""
    until, jumped = time.monotonic() + seconds, False
    while not (player.over or jumped):
        left = until - time.monotonic()
        if player.waits > player.video.seconds:
            time.sleep(max(0.0, left))
            return False
        try:
            jumped = player.obey(inbox.get(timeout=left) if left > 0 else inbox.get_nowait())
        except Empty:
            return False
    return jumped


# -- the terminal ------------------------------------------------------------------------------------------------------


@contextmanager
def _listen(screen: Screen | None, inbox: SimpleQueue[str], typing: bool) -> Iterator[None]:
    """Within it lines that are typed, or come through a pipe, go to `inbox`, and the terminal is the screen's.

    Ctrl-C and SIGTERM end what runs within, also where a shell had them ignored."""
    polite = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in polite}
    try:
        with ExitStack() as terminal:
            if screen is not None:
                terminal.enter_context(screen.whole())
            if typing and screen is not None and sys.platform != "win32":
                terminal.enter_context(screen.keyboard(inbox.put))
            else:
                Thread(target=_read_lines, args=(inbox,), daemon=True).start()
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read_lines(inbox: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        inbox.put(line)


def _line_by_line(tell: Tell) -> Tell:
    """Return `tell`, for a pipe that its reader may have closed."""

    def say(text: str) -> None:
        with suppress(BrokenPipeError):
            tell(text)
            sys.stdout.flush()

    return say


def _replace_undecodable() -> None:
    """Let no character that is typed, or cannot be shown here, end the stream."""
    spell_out()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
