"""The plan of a render: the words of a command line as a list of videos to make, checked before a model is loaded."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rollforce.checkpoints.outputs import check_plain, hold, write_whole
from rollforce.cli.launch import Launch, read_launch
from rollforce.cli.options import RenderOptions
from rollforce.cli.places import MANIFEST, Places, RenderTask, check_places, hold_video
from rollforce.cli.prompt_files import PromptJob, check_cues, parse_cue, read_jobs, slug
from rollforce.cli.record import Record, Request, as_setting, is_complete, read_record, record_path
from rollforce.cli.resume import find_resumed, read_unfinished
from rollforce.cli.segments import SEGMENT_S
from rollforce.errors import ConfigError
from rollforce.streaming.load import read_origin
from rollforce.video.duration import parse_duration
from rollforce.video.images import read_duration
from rollforce.video.outputs import STDOUT, find_video, parse_output
from rollforce.video.size import parse_size
from rollforce.video.values import (
    check_path,
    check_prompt,
    check_seconds,
    draw_seed,
    make_folder,
)

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_WITH_RESUME = {"resume", "save_every", "thumbnail", "quiet", "as_json", "debug"}
_NOT_ON_STDOUT = {"as_json", "thumbnail", "keep", "overwrite"}


@dataclass(frozen=True)
class RenderPlan:
    """All videos of a command. They share one model; `overrides` are what it is loaded with.

    Of several processes that were launched together, each makes `mine` and knows `tasks`."""

    tasks: tuple[RenderTask, ...]
    overrides: tuple[str, ...]
    record: Record | None = None
    folder: Path | None = None  # of a batch: holds manifest.jsonl
    launch: Launch = field(default_factory=Launch)

    @property
    def request(self) -> Request:
        """Any one: model, stream, device and dtype are the same in all."""
        return self.tasks[0].request

    @property
    def mine(self) -> tuple[RenderTask, ...]:
        """The share of this process."""
        return self.tasks[self.launch.share]


def plan(options: RenderOptions, held: ExitStack | None = None) -> RenderPlan:
    """Return the checked plan of a render command. ConfigError says what cannot be used and what to type instead.

    What is to be written is locked until `held` is closed, before it is looked at (None: for this look alone)."""
    save_every = parse_duration(options.save_every, "--save-every")
    check_seconds(save_every, "--save-every", zero=True, remedy="0 is never.")
    with ExitStack() as look:
        return (_plan if options.resume is None else _plan_resume)(options, held or look)


def _plan(options: RenderOptions, held: ExitStack) -> RenderPlan:
    if options.keep and options.overwrite:
        raise ConfigError("--keep keeps what is there and --overwrite replaces it: use one of them.")
    words, overrides = split_overrides(options.words)
    prompt = _pick_prompt(words, options)
    record = read_record(options.record) if options.record else None
    request = _read_request(options, record.request if record else Request(prompt or ""), overrides)
    request.inputs()  # refuse now what cannot be given
    _check_effect(options, request)
    if prompt is not None:
        request = dataclasses.replace(request, prompt=prompt)
    if options.prompts is None:
        tasks, folder = [_single_task(options, request, record)], None
    else:
        tasks, folder = _batch_tasks(options, request), options.out or Path()
    recorded = record.settings() if record and options.stream is None else ()
    made = RenderPlan(tuple(tasks), (*recorded, *overrides) if record else request.overrides, record, folder,
                      read_launch())  # fmt: skip
    _check_changes(tasks, options)
    _make_folder(options)
    check_places(tasks, _sources(request, options), folder, options.thumbnail)
    _lock(tasks[0].path if folder is None else folder / MANIFEST, made.launch, held)
    looked = {task.path: task for task in places_of(made, options).look_at_all(made.mine)}
    return dataclasses.replace(made, tasks=tuple(looked.get(task.path, task) for task in tasks))


def split_overrides(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the prompts among words of a command line, and the stream settings (KEY=VALUE)."""
    overrides = tuple(word for word in words if _OVERRIDE.match(word))
    return [word for word in words if word not in overrides], overrides


def places_of(made: RenderPlan, options: RenderOptions) -> Places:
    """Return what a command may do with files that are there."""
    request = made.request
    find_origin = functools.cache(lambda: read_origin(request.model, request.stream, made.overrides, request.window))
    return Places(options.keep, options.overwrite, options.thumbnail, find_origin)


def _sources(request: Request, options: RenderOptions) -> dict[str, str | None]:
    return {"--image": request.image, "--video": request.video, "--follow": request.follow,
            "--prompts": options.prompts}  # fmt: skip


def _plan_resume(options: RenderOptions, held: ExitStack) -> RenderPlan:
    """Return the plan of `--resume FILE`: all as its record says."""
    if others := [spelling for name, spelling in options.flags().items() if name not in _WITH_RESUME]:
        raise ConfigError(f"--resume goes on as the render was begun: leave out {', '.join(others)}.")
    video = find_resumed(options.resume or Path())
    check_plain(video)
    launch = read_launch()
    _lock(video, launch, held)
    record = read_record(record_path(video))
    task = RenderTask(record.request, video, done=is_complete(video), begun=True)
    if not task.done and launch.rank == 0:
        read_unfinished(video)
        record.request.inputs()
    return RenderPlan((task,), record.settings(), record, launch=launch)


def write_manifest(plan_: RenderPlan, status: dict[Path, str]) -> None:
    """List every video of a batch and how far it is, one JSON object per line, in manifest.jsonl.

    Of several processes, each says how far its own are, and leaves the others' lines as they are."""
    if plan_.folder is None:
        return
    path, mine = plan_.folder / MANIFEST, {task.path for task in plan_.mine}
    with hold(path.with_stem("manifest-lines"), wait_s=60):
        told = _read_manifest(path) if plan_.launch.size > 1 else {}
        lines = []
        for task in plan_.tasks:
            name, request = task.path.name, task.request
            own = "done" if task.done else status.get(task.path, "waiting")
            lines.append({"video": name, "status": own if task.path in mine else told.get(name, "waiting"),
                          "prompt": request.prompt, "seed": request.seed, "seconds": request.seconds})  # fmt: skip
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _read_manifest(path: Path) -> dict[str, str]:
    """Return the status of each video in a manifest; of one that is not there or not one, nothing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        lines = path.read_text(encoding="utf-8").splitlines()
        return {line["video"]: line["status"] for line in map(json.loads, lines)}
    return {}


def _pick_prompt(words: list[str], options: RenderOptions) -> str | None:
    given = [name for name, there in (("a prompt", bool(words)), ("--prompts", options.prompts is not None),
                                      ("--from", options.record is not None)) if there]
    if not given:
        raise ConfigError('Say what to render: rollforce render "a red ball bounces over green hills", '
                          "or --prompts FILE, or --from FILE.json.")
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} cannot be used together.")
    if len(words) > 1:
        raise ConfigError(f"got {len(words)} prompts; put one prompt in quotes: {' '.join(words)!r}. "
                          "Overrides look like key=value.")
    return check_prompt(words[0]) if words else None


def _check_effect(options: RenderOptions, request: Request) -> None:
    """ConfigError for an option that nothing would come of."""
    if options.strength is not None and request.follow is None:
        raise ConfigError(f"--strength {options.strength:g} is of a video to follow, and there is none: give --follow.")
    if options.fit is not None and not (request.image or request.video or request.follow):
        raise ConfigError(f"--fit {options.fit} is of pictures, and there are none: give --image, --video or --follow.")


def _read_request(options: RenderOptions, start: Request, overrides: tuple[str, ...]) -> Request:
    """Return `start` with everything replaced that was typed."""
    typed = {name: getattr(options, name, None) for name in Request.__dataclass_fields__ if name != "running"}
    kept = {name: as_setting(value) for name, value in typed.items() if value is not None}
    if options.size:
        kept["size"] = parse_size(options.size)
    if options.seconds is not None:
        kept["seconds"] = parse_duration(options.seconds, "--seconds", endless=True)
    elif options.follow and not options.loop and (length := read_duration(options.follow)):
        kept["seconds"] = length
    if options.segment is not None:
        kept["segment"] = parse_duration(options.segment, "--segment")
    elif math.isinf(kept.get("seconds", start.seconds)) and start.segment is None:
        kept["segment"] = SEGMENT_S
    if options.at:
        kept["cues"] = tuple(sorted(map(parse_cue, options.at), key=lambda cue: cue.at))
    if options.enhance or options.enhance_model:
        kept["wording"] = {}  # what a record says was another's
    runtime = {name: as_setting(value) for name, value in options.running.items()}
    return dataclasses.replace(start, overrides=(*start.overrides, *overrides),
                               running=dataclasses.replace(start.running, **runtime), **kept)  # fmt: skip


def _make_folder(options: RenderOptions) -> None:
    if options.out is not None:
        make_folder(options.out, "--out")


def _read_prompts(source: str, request: Request) -> list[PromptJob]:
    if source == "-":
        return read_jobs(sys.stdin.buffer.read(), "stdin", seed=request.seed, seconds=request.seconds)
    try:
        content = check_path(source, "--prompts").read_bytes()
    except OSError as error:
        raise ConfigError(f"--prompts {source} cannot be read: {error.strerror}.") from error
    return read_jobs(content, source, seed=request.seed, seconds=request.seconds)


def _single_task(options: RenderOptions, request: Request, record: Record | None) -> RenderTask:
    if options.output and options.out:
        raise ConfigError("-o names a file and --out a folder; use one of them.")
    path = (options.out or Path()) / f"{slug(request.prompt)}.mp4"
    if options.output is not None:
        path = parse_output(str(options.output))
    elif record and options.record and not options.out:
        path = find_video(options.record)
    if path == STDOUT and (unfit := [flag for name, flag in options.flags().items() if name in _NOT_ON_STDOUT]):
        raise ConfigError(f"-o - writes the video to stdout: leave out {', '.join(unfit)}.")
    if options.keep and request.segment is not None:
        raise ConfigError("--keep keeps videos of one file; what was written in several goes on with --resume.")
    if options.seed is None and record is None:
        request = dataclasses.replace(request, seed=_choose_seed(path, options.keep))
    return RenderTask(request, path)


def _choose_seed(path: Path, keep: bool) -> int:
    """Draw a seed; of what is to be kept, it is the one that it was made with."""
    if keep and path.exists():
        with suppress(ConfigError):
            return read_record(record_path(path)).request.seed
    return draw_seed()


def _batch_tasks(options: RenderOptions, request: Request) -> list[RenderTask]:
    if options.output:
        raise ConfigError("-o names one file; with --prompts use --out DIR.")
    if options.segment or math.isinf(request.seconds):
        raise ConfigError("--segment and --seconds inf are for one video; those of --prompts have an end, and a file "
                          "each.")  # fmt: skip
    folder, tasks = options.out or Path(), []
    for job in _read_prompts(options.prompts or "", request):
        mine = dataclasses.replace(request, prompt=job.prompt, seed=job.seed, seconds=job.seconds,
                                   cues=job.cues or request.cues)  # fmt: skip
        tasks.append(RenderTask(mine, folder / f"{job.name}.mp4", job.where))
    return tasks


def _check_changes(tasks: list[RenderTask], options: RenderOptions) -> None:
    """ConfigError if a typed change comes after the end; those of a record may, where --seconds made it shorter."""
    for task in tasks if options.at else ():
        try:
            check_cues(task.request.cues, task.request.seconds)
        except ConfigError as error:
            raise ConfigError(f"{task.where}{': ' if task.where else ''}--{error}") from None


def _lock(path: Path, launch: Launch, held: ExitStack) -> None:
    """Lock what will be written until the command ends: a video, or the list of a batch, whose videos have their turn.

    Of processes that were launched together, the first does."""
    if launch.rank == 0:
        held.enter_context(hold_video(path))
