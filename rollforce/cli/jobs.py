"""The plan of a render: the words of a command line as a list of videos to make, checked before a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from rollforce.cli.options import RenderOptions
from rollforce.cli.prompt_files import PromptJob, check_cues, parse_cue, read_jobs, slug
from rollforce.cli.record import Record, Request, as_setting, is_complete, read_record, record_path
from rollforce.cli.resume import read_unfinished, snapshot_path
from rollforce.errors import ConfigError
from rollforce.video.images import read_duration
from rollforce.video.size import parse_size
from rollforce.video.writer import check_folder, check_output

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_WITH_RESUME = {"resume", "save_every", "quiet", "as_json", "debug"}


@dataclass(frozen=True)
class RenderTask:
    """One video to make, or one that is there already (`done`), or a part of which is there (`begun`)."""

    request: Request
    path: Path
    where: str = ""
    done: bool = False
    begun: bool = False


@dataclass(frozen=True)
class RenderPlan:
    """All videos of a command. They share one model; `overrides` are what it is loaded with."""

    tasks: tuple[RenderTask, ...]
    overrides: tuple[str, ...]
    record: Record | None = None
    folder: Path | None = None  # of a batch: holds manifest.jsonl

    @property
    def request(self) -> Request:
        """Any one: model, stream, device and dtype are the same in all."""
        return self.tasks[0].request


def plan(options: RenderOptions) -> RenderPlan:
    """Return the checked plan of a render command. ConfigError says what cannot be used and what to type instead."""
    if not options.save_every >= 0:
        raise ConfigError(f"--save-every must be 0 (never) or a number of seconds, got {options.save_every:g}.")
    if options.resume is not None:
        return _plan_resume(options, options.resume)
    words, overrides = split_overrides(options.words)
    prompt = _pick_prompt(words, options)
    record = read_record(options.record) if options.record else None
    request = _read_request(options, record.request if record else Request(prompt or ""), overrides)
    request.inputs()  # refuse now what cannot be given
    if prompt is not None:
        request = dataclasses.replace(request, prompt=prompt)
    folder = _make_folder(options)
    if options.prompts is None:
        tasks = [_single_task(options, request, record, folder)]
    else:
        jobs = _read_prompts(options.prompts, request)
        tasks = [_batch_task(options, request, job, folder) for job in jobs]
    _check_changes(tasks, options)
    _check_outputs(tasks, options)
    recorded = record.settings() if record and options.stream is None else ()
    return RenderPlan(tuple(tasks), (*recorded, *overrides) if record else request.overrides, record,
                folder if options.prompts is not None else None)


def split_overrides(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the prompts among words of a command line, and the stream settings (KEY=VALUE)."""
    overrides = tuple(word for word in words if _OVERRIDE.match(word))
    return [word for word in words if word not in overrides], overrides


def _plan_resume(options: RenderOptions, file: Path) -> RenderPlan:
    """Return the plan of `--resume FILE`: all as its record says."""
    if others := [spelling for name, spelling in options.flags().items() if name not in _WITH_RESUME]:
        raise ConfigError(f"--resume goes on as the render was begun: leave out {', '.join(others)}.")
    video = file.with_suffix(".mp4")
    record = read_record(record_path(video))
    if not video.exists():
        raise ConfigError(f"{video} does not exist: there is nothing to continue.")
    task = RenderTask(record.request, video, done=is_complete(video), begun=True)
    if not task.done:
        read_unfinished(video)
        record.request.inputs()
    return RenderPlan((task,), record.settings(), record)


def write_manifest(plan_: RenderPlan, status: dict[Path, str]) -> None:
    """List every video of a batch and how far it is, one JSON object per line, in manifest.jsonl."""
    if plan_.folder is None:
        return
    lines = [json.dumps({"video": task.path.name, "status": "done" if task.done else status.get(task.path, "waiting"),
                         "prompt": task.request.prompt, "seed": task.request.seed, "seconds": task.request.seconds},
                        ensure_ascii=False) for task in plan_.tasks]
    fresh = plan_.folder / "manifest.jsonl.part"
    fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
    fresh.replace(plan_.folder / "manifest.jsonl")


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
    if words and not words[0].strip():
        raise ConfigError('The prompt is empty. Say what to show, e.g. "a red ball bounces over green hills".')
    return words[0] if words else None


def _read_request(options: RenderOptions, start: Request, overrides: tuple[str, ...]) -> Request:
    """Return `start` with everything replaced that was typed."""
    typed = {name: getattr(options, name, None) for name in Request.__dataclass_fields__ if name != "running"}
    kept = {name: as_setting(value) for name, value in typed.items() if value is not None}
    if options.size:
        kept["size"] = parse_size(options.size)
    if options.seconds is None and options.follow and (length := read_duration(options.follow)):
        kept["seconds"] = length
    if options.at:
        kept["cues"] = tuple(sorted(map(parse_cue, options.at), key=lambda cue: cue.at))
    if options.enhance or options.enhance_model:
        kept["wording"] = {}  # what a record says was another's
    runtime = {name: as_setting(value) for name, value in options.running.items()}
    return dataclasses.replace(start, overrides=(*start.overrides, *overrides),
                               running=dataclasses.replace(start.running, **runtime), **kept)  # fmt: skip


def _make_folder(options: RenderOptions) -> Path:
    folder = options.out or Path()
    if options.out is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {folder} cannot be made: {error.strerror}.") from error
    return folder


def _read_prompts(source: str, request: Request) -> list[PromptJob]:
    if source == "-":
        return read_jobs(sys.stdin.buffer.read(), "stdin", seed=request.seed, seconds=request.seconds)
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise ConfigError(f"--prompts {source} cannot be read: {error.strerror}.") from error
    return read_jobs(content, source, seed=request.seed, seconds=request.seconds)


def _single_task(options: RenderOptions, request: Request, record: Record | None, folder: Path) -> RenderTask:
    if options.output and options.out:
        raise ConfigError("-o names a file and --out a folder; use one of them.")
    path = options.output or folder / f"{slug(request.prompt)}.mp4"
    if record and options.record and not (options.output or options.out):
        path = options.record.with_suffix(".mp4")
    return _task(options, request, path)


def _batch_task(options: RenderOptions, request: Request, job: PromptJob, folder: Path) -> RenderTask:
    if options.output:
        raise ConfigError("-o names one file; with --prompts use --out DIR.")
    path = folder / f"{job.name}.mp4"
    mine = dataclasses.replace(request, prompt=job.prompt, seed=job.seed, seconds=job.seconds,
                               cues=job.cues or request.cues)  # fmt: skip
    return _task(options, mine, path, job.where)


def _task(options: RenderOptions, request: Request, path: Path, where: str = "") -> RenderTask:
    done = options.keep and is_complete(path)
    begun = options.keep and not done and path.exists() and snapshot_path(path).exists()
    return RenderTask(request, path, where, done, begun)


def _check_changes(tasks: list[RenderTask], options: RenderOptions) -> None:
    """ConfigError if a typed change comes after the end; those of a record may, where --seconds made it shorter."""
    for task in tasks if options.at else ():
        try:
            check_cues(task.request.cues, task.request.seconds)
        except ConfigError as error:
            raise ConfigError(f"{task.where}{': ' if task.where else ''}--{error}") from None


def _check_outputs(tasks: list[RenderTask], options: RenderOptions) -> None:
    waiting = [task.path for task in tasks if not task.done]
    replace = options.overwrite or options.keep
    if len(tasks) == 1:
        for path in waiting:
            check_output(path, replace)
            _check_record(path, replace)
        return
    for folder in {path.parent for path in waiting}:
        check_folder(folder)
    there = [path for path in waiting if path.exists()]
    if there and not replace:
        raise ConfigError(f"{len(there)} of {len(tasks)} outputs exist, the first is {there[0]}; use --keep to keep "
                          "those that are complete, or --overwrite to replace them.")


def _check_record(path: Path, replace: bool) -> None:
    """A .json beside the video that is not a record is somebody's own: do not write over it unasked."""
    beside = record_path(path)
    if beside.exists() and not replace and '"request"' not in beside.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{beside} exists and is not a record of a render; use --overwrite or another name with -o.")
