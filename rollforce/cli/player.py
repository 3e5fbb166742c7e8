"""A stream that is told otherwise while it plays: what is typed, what is shown, and the video that grows meanwhile."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rollforce.cli.record import Request, describe, record_path, save_record
from rollforce.cli.stream_files import read_stream, write_stream
from rollforce.cli.wording import add_wording
from rollforce.engine.transitions import NAMES, transition
from rollforce.errors import ConfigError, RollforceError
from rollforce.streaming.events import RECACHE, Chunk, Event
from rollforce.streaming.model import Model
from rollforce.streaming.pace import Pace
from rollforce.video.duration import parse_duration
from rollforce.video.values import check_seconds
from rollforce.video.writer import VideoWriter

COMMANDS = {
    "TRANSITION PROMPT": f"a new prompt by {', '.join(NAMES[:-1])} or {NAMES[-1]} (a plain line: recache)",
    "back TIME": "take back what came since (3)",
    "again TIME": "the same, and go on with another seed",
    "save FILE": "keep the stream as it stands",
    "load FILE": "go on where a kept one stood",
    "wait TIME": "read no further until so much more was shown",
    "words": "the words that prompts may use",
    "help": "this",
    "quit": "end (as Ctrl-C and Ctrl-D do)",
}
HELP = "\n".join(f"  :{name:<18} {what}" for name, what in COMMANDS.items())
LONGEST = 2000  # characters of a line


class Player:
    """One stream, its video, and what it is told. `say` hears what became of that. Nothing that is typed ends it but
    ":quit".

    A thread makes the next chunk while one is shown; it is begun as late as is safe, since what is typed before that
    is seen with it."""

    def __init__(self, model: Model, request: Request, path: Path, say: Callable[[str], None], *,
                 seconds: float | None = None, remember: float = 20.0, live: bool = False) -> None:  # fmt: skip
        """Begin. `seconds` of video to show, None for ever; `remember` how many of them can be taken back; `live`: the
        stream does less when it is late. ConfigError for a prompt that cannot be shown."""
        self.model, self.say, self.path = model, say, path
        self.seconds, self.remember = seconds, remember
        self.request, self.wording = request, dict(request.wording)
        self.prompt = self.word(request.prompt)
        if self.prompt != request.prompt:
            say(f"{request.prompt!r} is shown as {self.prompt!r}")
        self.pace = Pace() if live else None
        self.session = model.session(self.prompt, request.seed, request.size, remember=remember, pace=self.pace)
        self.size = request.size or model.size
        self.video = VideoWriter(path, model.fps, self.size, scale=request.scale or 1)
        self.lead = 0  # frames of the video before the first of the session
        self.over, self.waits, self.loaded = False, 0.0, False
        self.typed: dict[str, float] = {}  # when a prompt was accepted
        self.pool = ThreadPoolExecutor(1)
        self.coming: Future[Chunk | None] | None = None

    # -- what is typed ------------------------------------------------------------------------------------------

    def obey(self, line: str) -> bool:
        """Do what a line says, or say why not. Whether the stream jumped: what was to be shown next no longer is."""
        try:
            if len(line) > LONGEST:
                raise ConfigError(f"a line of {len(line)} characters: at most {LONGEST} are read.")
            return self._obey(line.strip())
        except (RollforceError, OSError, ValueError) as error:
            self.say(str(error))
        return False

    def _obey(self, line: str) -> bool:
        name, _, rest = line.removeprefix(":").partition(" ")
        rest = rest.strip()
        if line and not line.startswith(":"):
            self.tell(line, RECACHE.kind)
        elif name in NAMES:
            self.tell(rest or self.prompt, name)
        elif name in ("back", "again"):
            return self.back(_read_seconds(rest, 3), anew=name == "again")
        elif name == "save":
            self.save(rest)
        elif name == "load":
            return self.load(rest)
        elif name == "wait":
            self.waits = self.video.seconds + _read_seconds(rest, 1)
        elif name in ("words", "help"):
            self.say(" ".join(self.model.words) or "any words" if name == "words" else HELP)
        elif name == "quit":
            self.over = True
        elif line:
            self.say(f":{name} is none of the commands: {', '.join(':' + c.split()[0] for c in COMMANDS)}")
        return False

    def word(self, text: str) -> str:
        """Return what a prompt is shown as, and remember it for the record."""
        add_wording(self.model, self.request, text, self.wording)
        return self.wording.get(text, text)

    def tell(self, text: str, how: str) -> None:
        """Go on with another prompt."""
        prompt = self.word(text)
        self.session.prompt(prompt, transition(how))
        self.prompt, self.typed[prompt] = prompt, time.monotonic()
        self.say(f"accepted: {text!r} by {how}" + (f", shown as {prompt!r}" if prompt != text else ""))

    def back(self, seconds: float, anew: bool) -> bool:
        """Take back so much video; `anew`: go on with another seed."""
        unseen = self.take() if self.coming else None
        seed = (self.session.seed + 1) % 2**63 if anew else None
        self.session.rewind(seconds + (len(unseen.frames) / self.model.fps if unseen else 0), seed)
        kept = round(self.session.seconds * self.model.fps) + self.lead
        self.video.close()
        self.video = VideoWriter(self.path, self.model.fps, self.size, scale=self.video.scale, after=kept)
        told = (cue.prompt for cue in reversed(self.session.cues) if cue.prompt)
        self.prompt = next(told, self.word(self.request.prompt))
        self.say(f"back at {self.session.seconds:g} s" + (f", seed {seed} from here" if seed is not None else ""))
        return True

    def save(self, name: str) -> None:
        """Keep the stream as it stands in a file."""
        if Path(name).resolve() in (self.path.resolve(), record_path(self.path).resolve()):
            raise ConfigError(f"{name} belongs to this video: name another file.")
        if self.coming:
            self.coming.result()
        write_stream(self.session, name)
        self.say(f"kept {name}, at {self.session.seconds:g} s")

    def load(self, name: str) -> bool:
        """Go on where a kept stream stood."""
        snapshot = read_stream(name, self.size, self.model.size)
        session = self.model.resume(snapshot, remember=self.remember, pace=self.pace)
        if self.coming:
            self.take()
        self.session.close()
        self.session, self.prompt, self.loaded = session, snapshot.prompt, True
        self.lead = self.video.frames - round(session.seconds * self.model.fps)
        self.say(f"goes on from {name}, at {session.seconds:g} s of that stream")
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

    # -- the end ------------------------------------------------------------------------------------------------

    def keep_record(self) -> None:
        """Write beside the video what makes it again."""
        cues = tuple(cue for cue in self.session.cues if cue.at < self.video.seconds)
        if not self.loaded and self.video.frames:
            request = replace(self.request, cues=cues, seconds=self.video.seconds, wording=self.wording)
            save_record(self.path, describe(self.model, request, self.path))

    def close(self) -> None:
        """End the stream and its video, and write its record."""
        self.pool.shutdown()
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
        """Return the command that renders the same video."""
        words = ["rollforce", "render", self.word(self.request.prompt), *self.request.overrides]
        words += ["--seconds", f"{self.video.seconds:g}", "--seed", str(self.request.seed)]
        for name in ("model", "stream"):
            value = getattr(self.request, name)
            words += [f"--{name}", value] if value not in ("tiny", None) else []
        for cue in self.session.cues:
            how = "" if cue.transition == RECACHE else f",{cue.transition.kind}"
            words += ["--at", f"{cue.at:g}s{how}:{cue.prompt}"] if cue.at < self.video.seconds else []
        return shlex.join([*words, "-o", "again.mp4"])


def _read_seconds(text: str, default: float) -> float:
    """Return the seconds of a command that was typed; `default` if none were."""
    return check_seconds(parse_duration(text)) if text else default
