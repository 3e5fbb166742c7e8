"""Play a stream, and tell it otherwise while it runs: type, press Enter, watch it change.

    python infer/interactive.py "a red ball rolls left"
    printf ':wait 3\\na blue star drifts right\\n' | python infer/interactive.py "a red ball rolls left" --seconds 8

The picture is drawn in the terminal and written to a video that plays while it grows. Without a terminal there is only
the video, and lines are read from stdin. A line is a new prompt, or, if it begins with a colon, one of these:
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import rollforce
from rollforce.cli.record import Request, describe, record_path, save_record
from rollforce.engine.transitions import NAMES, transition
from rollforce.errors import RollforceError, call_main
from rollforce.streaming.events import RECACHE, Chunk, Event
from rollforce.streaming.pace import Pace
from rollforce.video.screen import Screen
from rollforce.video.values import check_arguments, check_file_name, check_prompt, check_seconds
from rollforce.video.writer import VideoWriter, check_output, default_scale

COMMANDS = {
    "TRANSITION PROMPT": f"a new prompt by {', '.join(NAMES[:-1])} or {NAMES[-1]} (a plain line: recache)",
    "back SECONDS": "take back what came since (3)",
    "again SECONDS": "the same, and go on with another seed",
    "save FILE": "keep the stream as it stands",
    "load FILE": "go on where a kept one stood",
    "wait SECONDS": "read no further until so much more was shown",
    "words": "the words that prompts may use",
    "help": "this",
    "quit": "end (as Ctrl-C and Ctrl-D do)",
}
HELP = "\n".join(f"  :{name:<18} {what}" for name, what in COMMANDS.items())


class Player:
    """One stream, its video, and what it is told. `say` hears what became of that.

    A thread makes the next chunk while one is shown; it is begun as late as is safe, since what is typed before that
    is seen with it."""

    def __init__(self, model: rollforce.Model, chosen: argparse.Namespace, say: Callable[[str], None]) -> None:
        self.model, self.say, self.remember, self.seconds = model, say, chosen.back, chosen.seconds
        self.request = Request(chosen.prompt, chosen.seed, size=model.size, scale=default_scale(model.size),
                               model=chosen.model, stream=chosen.stream, threads=model.threads)  # fmt: skip
        self.prompt = chosen.prompt  # the last that was accepted
        self.pace = Pace() if chosen.live else None
        self.session = model.session(self.prompt, chosen.seed, remember=self.remember, pace=self.pace)
        self.path = chosen.out
        self.video = VideoWriter(self.path, model.fps, model.size, scale=self.request.scale or 1)
        self.lead = 0  # frames of the video before the first of the session
        self.over, self.waits, self.loaded = False, 0.0, False
        self.typed: dict[str, float] = {}  # when a prompt was accepted
        self.pool = ThreadPoolExecutor(1)
        self.coming: Future[Chunk | None] | None = None

    # -- what is typed ------------------------------------------------------------------------------------------

    def obey(self, line: str) -> bool:
        """Do what a line says, or say why not. Whether the stream jumped: what was to be shown next no longer is."""
        name, _, rest = line.strip().removeprefix(":").partition(" ")
        try:
            if line.strip() and not line.strip().startswith(":"):
                self.tell(line.strip(), RECACHE.kind)
            elif name in NAMES:
                self.tell(rest.strip() or self.prompt, name)
            elif name in ("back", "again"):
                return self.back(float(rest or 3), self.session.seed + 1 if name == "again" else None)
            elif name in ("save", "load"):
                return self.save(Path(rest)) if name == "save" else self.load(Path(rest))
            elif name == "wait":
                self.waits = self.video.seconds + float(rest or 1)
            elif name in ("words", "help"):
                self.say(" ".join(self.model.words) or "any words" if name == "words" else HELP)
            elif name == "quit":
                self.over = True
            elif line.strip():
                self.say(f":{name} is none of the commands: {', '.join(':' + c.split()[0] for c in COMMANDS)}")
        except (RollforceError, OSError, ValueError) as error:
            self.say(str(error))
        return False

    def tell(self, prompt: str, how: str) -> None:
        self.session.prompt(prompt, transition(how))
        self.prompt, self.typed[prompt] = prompt, time.monotonic()
        self.say(f"accepted: {prompt!r} by {how}")

    def back(self, seconds: float, seed: int | None) -> bool:
        unseen = self.take() if self.coming else None
        self.session.rewind(seconds + (len(unseen.frames) / self.model.fps if unseen else 0), seed)
        kept = round(self.session.seconds * self.model.fps) + self.lead
        self.video.close()
        self.video = VideoWriter(self.path, self.model.fps, self.model.size, scale=self.video.scale, after=kept)
        self.prompt = next((cue.prompt for cue in reversed(self.session.cues) if cue.prompt), self.request.prompt)
        self.say(f"back at {self.session.seconds:g} s" + (f", seed {seed} from here" if seed is not None else ""))
        return True

    def save(self, path: Path) -> bool:
        if self.coming:
            self.coming.result()
        self.session.snapshot().save(path)
        self.say(f"kept {path}, at {self.session.seconds:g} s")
        return False

    def load(self, path: Path) -> bool:
        snapshot = rollforce.Snapshot.load(path)
        session = self.model.resume(snapshot, remember=self.remember, pace=self.pace)
        if self.coming:
            self.take()
        self.session.close()
        self.session, self.prompt, self.loaded = session, snapshot.prompt, True
        self.lead = self.video.frames - round(session.seconds * self.model.fps)
        self.say(f"goes on from {path}, at {session.seconds:g} s of that stream")
        return True

    # -- what is shown ------------------------------------------------------------------------------------------

    def begin(self) -> Future[Chunk | None]:
        """Begin the next chunk, if none is under way, and return its future."""
        self.coming = self.coming or self.pool.submit(self.make)
        return self.coming

    def take(self) -> Chunk | None:
        """Return the next chunk; None at the end."""
        coming, self.coming = self.begin(), None
        return coming.result()

    def make(self) -> Chunk | None:
        """Make a chunk and write it to the video; None at the end."""
        left = None if self.seconds is None else self.seconds - self.video.seconds
        if self.over or (left is not None and left < 0.5 / self.model.fps):
            return None
        chunk = next(self.session.stream(left))
        self.video.write(chunk.frames)
        seen = [event.cue for event in chunk.events if event.kind == "visible"]
        for event in chunk.events:
            if event.kind != "applied" or event.cue not in seen:
                self.say(self.heard(event))
        return chunk

    @property
    def safe_s(self) -> float:
        """How long before it is needed a chunk is to be begun."""
        return 2 * (self.session.measures.latency_p95_s or 0) + 0.1

    def heard(self, event: Event) -> str:
        """Return what became of something that was typed, or of the pace."""
        cue, at = event.cue, (event.frame or 0) / self.model.fps
        what = f"{cue.prompt!r}" if cue.prompt is not None else f"seed {cue.seed}"
        if event.kind == "pace" and cue.quality is not None:
            part = f", {cue.quality.past:.0%} of the past" if cue.quality.past < 1 else ""
            return f"pace: {cue.quality.steps} steps{part} from {at:g} s on"
        if event.kind == "visible" and cue.prompt in self.typed:
            after = time.monotonic() - self.typed.pop(cue.prompt)
            return f"visible: {what} from {at:g} s on, {after:.1f} s after it was typed"
        return f"{event.kind}: {what} {'for' if event.kind == 'replaced' else 'at'} {at:g} s"

    def keep_record(self) -> None:
        """Write beside the video what makes it again."""
        cues = tuple(cue for cue in self.session.cues if cue.at < self.video.seconds)
        if not self.loaded and self.video.frames:
            request = replace(self.request, cues=cues, seconds=self.video.seconds)
            save_record(self.path, describe(self.model, request, self.path))

    def close(self) -> None:
        self.keep_record()
        self.video.close()
        self.session.close()
        if not self.video.frames:
            self.path.unlink(missing_ok=True)

    def summary(self) -> Iterator[str]:
        """Yield the measures, and how to make the video again. Before `close`."""
        m = self.session.measures
        if m.first_frame_s is None or m.latency_p50_s is None:
            yield "nothing was shown"
            return
        yield f"video        {self.video.frames} frames = {self.video.seconds:g} s in {self.path}"
        yield f"first frame  {m.first_frame_s:.2f} s after the stream was opened"
        yield (f"chunks       {m.chunks}; half came within {m.latency_p50_s:.2f} s of being asked for, 95 % within "
               f"{m.latency_p95_s:.2f} s, 99 % within {m.latency_p99_s:.2f} s; {m.misses} too late for {m.fps:g} fps")
        yield (f"work         {m.denoise_s:.1f} s denoising, {m.decode_s:.1f} s decoding: "
               f"{m.times_real_time or 0:.1f}x real time")
        if self.loaded:
            yield "again        no command makes it: it goes on from a stream that was loaded"
            return
        yield f"again        rollforce render --from {shlex.quote(str(record_path(self.path)))} -o again.mp4"
        if all(cue.seed is None and cue.quality is None for cue in self.session.cues):
            yield f"or           {self.command()}"

    def command(self) -> str:
        words = ["rollforce", "render", self.request.prompt, "--seconds", f"{self.video.seconds:g}"]
        for name in ("seed", "model", "stream"):
            value = getattr(self.request, name)
            words += [f"--{name}", str(value)] if value not in (0, "tiny", None) else []
        for cue in self.session.cues:
            how = "" if cue.transition == RECACHE else f",{cue.transition.kind}"
            words += ["--at", f"{cue.at:g}s{how}:{cue.prompt}"] if cue.at < self.video.seconds else []
        return shlex.join([*words, "-o", "again.mp4"])


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


def free(path: Path) -> Path:
    """Return the path, or the next one like it that does not exist."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], others) if not each.exists())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ + HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", help="what to show at first")
    parser.add_argument("--model", default="tiny", help="a bundled model's name, or a folder with model.yaml")
    parser.add_argument("--stream", help="a stream preset, or a YAML file (default: the one the model was trained for)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="how long (default: until it is ended; from a pipe, 20)")
    parser.add_argument("--out", type=Path, default=Path("live.mp4"), help="the video (none that exists is replaced)")
    parser.add_argument("--back", type=float, default=20.0, metavar="SECONDS", help="how far :back can go (20)")
    chosen = parser.parse_args()
    check_prompt(chosen.prompt)
    check_arguments(chosen, seconds=("seconds",), seeds=("seed",))
    check_seconds(chosen.back, "--back", zero=True)
    chosen.out = check_file_name(chosen.out, "--out", "live.mp4")
    chosen.out = free(chosen.out)
    typing, watching = sys.stdin.isatty(), sys.stdout.isatty()
    chosen.live = typing or watching
    chosen.seconds = chosen.seconds or (None if typing else 20.0)
    screen, inbox = Screen(sys.stdout) if watching else None, SimpleQueue[str]()
    try:
        check_output(chosen.out)
        player = Player(rollforce.load(chosen.model, stream=chosen.stream), chosen, screen.say if screen else say)
    except RollforceError as error:
        sys.exit(str(error))
    for polite in (signal.SIGINT, signal.SIGTERM):  # either ends like Ctrl-C, also where a shell had it ignored
        signal.signal(polite, signal.default_int_handler)
    with ExitStack() as terminal:
        if screen is not None:
            terminal.enter_context(screen.whole())
        if typing and screen is not None and sys.platform != "win32":
            terminal.enter_context(screen.keyboard(inbox.put))
        else:
            Thread(target=listen, args=(inbox,), daemon=True).start()
        try:
            play(player, inbox, screen, chosen.live)
        except KeyboardInterrupt:
            player.over = True
    player.pool.shutdown()
    summary = list(player.summary())
    player.close()
    print("\n".join(summary))


def listen(inbox: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        inbox.put(line)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    call_main(main)
