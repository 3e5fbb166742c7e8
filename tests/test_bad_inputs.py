"""Six hundred bad inputs, drawn with one seed over commands, calls and scripts: each is refused, in our own words.

What is refused raises an error of ours, or ends a command with another code than 0; the message shows the value and
says what would be right. Nothing is left behind in the folder where it happened."""

from __future__ import annotations

import random
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repository import ROOT
from small_model import make_model_folder
from typer.testing import CliRunner

import rollforce
from rollforce.cli.main import app
from rollforce.engine.quality import QualityLevel
from rollforce.errors import RollforceError
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.streaming.model import Model

SEED, COMMANDS, CALLS, SCRIPTS = 17, 240, 280, 80
PROMPT = "a red ball rolls left"
NAN, INF = float("nan"), float("inf")
REMEDY = re.compile(
    r"must|such as|nearest|knows|one of|at least|at most|mkdir|presets|bundled|did you mean|is not a valid|should be"
    r"|takes |does not exist|there is no|cannot be read|invalid .* value|--overwrite"
    r"|\b(use|try|give|name|say|write|leave|put|add|copy|take|make|load|open|choose|change|set|start|call|show)\b",
    re.IGNORECASE,
)

SIZES = ["0x0", "64", "axb", "-1x5", "64x", "100000x100000", "50x50", "64x64x3", "999999999x8", "0x64", "1x1", "64,64"]
SECONDS = ["0", "-1", "nan", "-inf", "1e300", "ten", "-1e-9", "3e9"]
SEEDS = ["-1", str(2**63), "1.5", "x", "1e3", str(10**30)]
COUNTS = ["0", "-1", "1.5", "x", str(2**31), str(10**20), "nan"]
NAMES = ["nope", "", "../nope", "no\tpe", "tin", "n" * 300]
PROMPTS = ["", " ", "!!!", "\t", "...?", "\udcff ball"]
OVERRIDES = [
    "layout.micro=7",
    "layout.shift=1e9",
    "layout.shift=-1",
    "layout.shift=.nan",
    "stepping.context_sigma=5",
    "stepping.context_noise=-1",
    "cache.0.latents=-3",
    "cache.0.latents=100000000",
    "cache.9.latents=3",
    "layout.chunk=0",
    "layout.chunk=1000000",
    "layout.levels=[]",
    "layout.levels=[.nan]",
    "layout.levels=[2]",
    "layout.levels=[0.2,0.5]",
    "layout.kind=nope",
    "layout=3",
    "stepping.sampler=no",
    "nope.x=1",
    "cache=",
    "stepping.denoise.budget=0",
    "cache.0.kind=nope",
    "layout.levels=x",
    "float32_islands=maybe",
    "layout.chunk=1e3",
]

COMMON = {
    "--size": SIZES,
    "--stream": [*NAMES, "nope.yaml"],
    "--device": ["gpu", "cuda:99", "meta", "cpu:", "x" * 90],
    "--dtype": ["int8", "float", "half", "bf16"],
    "--window": [*COUNTS, "10000000"],
    "--attention": ["nope", "SDPA"],
    "--offload": ["all", "txt"],
    "--quantize": ["int3", "true"],
    "--compile": ["yes", "all"],
}
RENDER = {
    **COMMON,
    "-s": SECONDS,
    "--seed": SEEDS,
    "--scale": [*COUNTS, "100000"],
    "--threads": [*COUNTS, "100000"],
    "--save-every": ["-1", "nan", "1e300", "x"],
    "--strength": ["0", "2", "nan", "-1", "0.5"],
    "--fit": ["zoom", "pad"],
    "--image": ["nope.png", ".", "empty.png"],
    "--video": ["nope.mp4", "no/pe"],
    "--follow": ["nope.mp4", "no/pe"],
    "-o": ["", ".", "/", "nope/x.mp4", "x.mov", "/proc/x.mp4", "n" * 300 + ".mp4"],
    "--at": ["5", "5:", "x:a ball", "-1:a red ball", "5,nope:a red ball", "99:a red ball", "0.1:!!!"],
    "--lora": ["nope.safetensors", "nope=x", "=0.5"],
    "--decoder": ["nope.pth", "."],
    "--prompts": ["nope.txt", ".", "bad.json", "bad.csv", "bad.yaml", "bad.jsonl", "latin.txt", "empty.png"],
    "--from": ["nope.json", ".", "bad.json", "empty.png"],
    "--out": ["empty.png", "/proc/x", "empty.png/x"],
}
OPTIONS: dict[str, dict[str, list[str]]] = {
    "render": RENDER,
    "plan": {**COMMON, "--free": ["nan", "-inf", "-1", "0", "1e300", "x"], "--model": NAMES},
    "inspect": {
        "--seconds": [*SECONDS, "inf"],
        "--stream": NAMES,
        "--model": NAMES,
        "--event": ["nope@3", "cut", "cut@x"],
        "--set": OVERRIDES,
        "-o": ["x.jpg"],
    },
    "words": {"--model": NAMES},
    "live": {
        **COMMON,
        "-s": SECONDS,
        "--seed": SEEDS,
        "--back": ["-1", "nan", "inf", "x", "1e300"],
        "-o": ["", ".", "nope/x.mp4", "x.mov", "/proc/x.mp4"],
    },
}
FILES = {
    "bad.json": '{"prompts": [',
    "bad.csv": "name,seed\na,1\n",
    "bad.yaml": "a: [",
    "bad.jsonl": '{"promt": "a"}\n',
    "empty.png": "",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with files that are no use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, text in FILES.items():
        Path(name).write_text(text)
    Path("latin.txt").write_bytes("a bälle".encode("latin-1"))
    return tmp_path


def check_refusal(value: object, said: str) -> None:
    """The message is ours: it shows the value, or a part of it, and says what would be right."""
    flat = re.sub(r"[\s│]|\\\\", "", said)
    assert REMEDY.search(said), said
    shown = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else repr(value)
    pieces = re.split(r"(?<=\d)x(?=\d)|[\s=:,'\"\[\](){}/]+", shown)
    parts = [part for part in pieces if part.isprintable() and part.isascii()]
    assert not any(parts) or any(each in flat for part in parts for each in spell(part)), (value, said)


def spell(part: str) -> Iterator[str]:
    """Yield how a message may write a piece of a value."""
    if part:
        yield part[:20]
        with suppress(ValueError):
            yield f"{float(part):g}"


def draw_commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a bad value and the command line that has it."""
    rng = random.Random(SEED)
    for _ in range(COMMANDS):
        command = rng.choices(list(OPTIONS), (10, 5, 3, 1, 3))[0]
        words = [
            command,
            *([PROMPT] if command in ("render", "live") else []),
            *(["--stream", "rolling"] if command == "inspect" else []),
        ]
        model = ["--model", str(folder)] if command in ("render", "plan", "live") else []
        if command == "render" and rng.random() < 0.3:
            value = rng.choice([*OVERRIDES, *PROMPTS])
            yield value, [command, *([PROMPT, value] if value in OVERRIDES else [value]), *model, "-s", "0.2"]
            continue
        option = rng.choice(list(OPTIONS[command]))
        value = rng.choice(OPTIONS[command][option])
        if option in ("--prompts", "--from"):
            words = [command]
        yield (
            value,
            [
                *words,
                *model,
                *(["-s", "0.2"] if command == "render" and option not in ("-s", "--at") else []),
                option,
                value,
            ],
        )


def test_no_command_takes_what_is_bad(folder: Path, here: Path) -> None:
    before = sorted(here.iterdir())
    for value, words in draw_commands(folder):
        done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
        assert isinstance(done.exception, SystemExit), (words, done.exception)
        assert done.exit_code in (2, 3, 4), (words, done.exit_code, done.output)
        check_refusal(value, done.output)
    assert sorted(here.iterdir()) == before


ODD: list[Any] = [
    None,
    "x",
    b"x",
    -1,
    NAN,
    INF,
    -INF,
    1.5,
    True,
    [3],
    {"a": 1},
    (),
    object,
    2**70,
    np.float32(-3),
    1e300,
]


def list_calls(model: Model) -> dict[str, tuple[Callable[[Any], object], Sequence[Any]]]:
    """Return the public calls by name: what each does with a value, and the odd values that are right for it."""
    session = model.session(PROMPT, remember=2)
    return {
        "seed": (lambda v: model.session(PROMPT, seed=v), (None,)),
        "size": (lambda v: model.session(PROMPT, size=v), (None,)),
        "prompt": (model.session, ("x",)),
        "remember": (lambda v: model.session(PROMPT, remember=v), (1.5,)),
        "cues": (lambda v: model.session(PROMPT, cues=v), ((),)),
        "pace": (lambda v: model.session(PROMPT, pace=v), (None,)),
        "batch": (lambda v: model.session(PROMPT, batch=v), (None,)),
        "strength": (lambda v: model.session(PROMPT, follow=np.zeros((9, 32, 48, 3), np.uint8), strength=v), (None,)),
        "fit": (lambda v: model.session(PROMPT, fit=v), ()),
        "stream": (session.stream, (None, INF, 1.5)),
        "astream": (session.astream, (None, INF, 1.5)),
        "say": (session.prompt, ()),
        "how": (lambda v: session.prompt(PROMPT, v), ()),
        "at": (lambda v: session.prompt(PROMPT, at=v), (None, 1.5)),
        "rewind": (session.rewind, ()),
        "fork": (session.fork, (None,)),
        "save": (lambda v: session.snapshot().save(v), ("x",)),
        "read": (rollforce.Snapshot.load, ()),
        "resume": (model.resume, ()),
        "limit": (lambda v: model.batch(limit=v), ()),
        "lanes": (lambda v: model.batch(lanes=v), ()),
        "warmup": (model.warmup, (None,)),
        "cue": (lambda v: rollforce.Cue(v, PROMPT), (1.5,)),
        "cue.prompt": (lambda v: rollforce.Cue(1, v), (None, "x")),
        "cue.how": (lambda v: rollforce.Cue(1, PROMPT, v), ()),
        "cue.seed": (lambda v: rollforce.Cue(1, seed=v), (None,)),
        "cue.quality": (lambda v: rollforce.Cue(1, quality=v), (None,)),
        "quality.steps": (QualityLevel, ()),
        "quality.past": (lambda v: QualityLevel(1, v), ()),
        **{
            f"pace.{name}": (lambda v, name=name: rollforce.Pace(**{name: v}), good)
            for name, good in {
                "fps": (None, 1.5),
                "grace": (1.5,),
                "misses": (),
                "among": (),
                "ample": (),
                "calm": (),
                "clock": (object,),
            }.items()
        },
        **{
            f"running.{name}": (lambda v, name=name: RuntimeOptions(**{name: v}), good)
            for name, good in {
                "attention": (),
                "loras": ((),),
                "quantize": (None,),
                "offload": ((),),
                "tiling": (True,),
                "decoder": (None,),
                "compile": (None,),
            }.items()
        },
        **{
            f"load.{name}": (lambda v, name=name: rollforce.load(**{"model": "tiny", name: v}), good)
            for name, good in {
                "model": (),
                "stream": (None,),
                "overrides": ((),),
                "window": (None,),
                "device": (),
                "dtype": (),
                "threads": (None,),
                "running": (None,),
                "size": (None,),
            }.items()
        },
        **{
            f"stream.{name}": (
                lambda v, name=name: rollforce.stream(**{"prompt": PROMPT, "model": model, name: v}),
                good,
            )
            for name, good in {"prompt": ("x",), "seconds": (None, INF, 1.5), "seed": (None,), "size": (None,)}.items()
        },
    }


def test_no_call_takes_what_is_bad(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = rollforce.load(make_model_folder(tmp_path_factory.mktemp("world") / "small", world=True))
    calls, rng = list_calls(model), random.Random(SEED)
    pairs = [
        (name, value)
        for name, (_, good) in calls.items()
        for value in ODD
        if not any(value is each or (type(value) is type(each) and value == each) for each in good)
    ]
    assert len(pairs) >= CALLS
    for name, value in rng.sample(pairs, CALLS):
        with pytest.raises(RollforceError) as caught:
            done = calls[name][0](value)
            if name.startswith("stream."):
                next(iter(done))  # type: ignore[call-overload]
            pytest.fail(f"{name} took {value!r}: {done!r:.100}")
        check_refusal(value, str(caught.value))


ARGUMENTS = {
    "infer/stream.py": {"": PROMPTS[2:5]},
    "infer/render.py": {
        "": ["nope.txt", ".", "bad.jsonl", "bad.csv"],
        "prompts.txt --seconds": SECONDS,
        "prompts.txt --seed": SEEDS,
        "prompts.txt --model": NAMES,
    },
    "infer/switches.py": {
        "--prompts": COUNTS,
        "--workers": COUNTS,
        "--transitions": ["nope"],
        "--json": ["/proc/x", "."],
    },
    "infer/evaluate.py": {
        "--prompts": COUNTS,
        "--seeds": COUNTS,
        "--seconds": SECONDS,
        "--seed": SEEDS,
        "--run": ["x", "a b=c"],
        "--runs": ["nope.yaml", "bad.yaml"],
        "--compare": ["nope.json", "bad.json"],
        "--model": NAMES,
    },
    "infer/search.py": {"--prompts": COUNTS, "--seconds": SECONDS, "--runs": ["nope", "0x0"], "--span": ["0", "-1"]},
    "infer/bench.py": {
        "--model wan-1.3b --dry-run --size": SIZES,
        "--seconds": SECONDS,
        "--threads": ["-1", "100000"],
        "--dim": COUNTS,
        "--case": ["nope"],
        "--random-weights --model": ["nope"],
    },
    "infer/soak.py": {"--rows": COUNTS, "--seed": SEEDS, "--model": NAMES, "--hours": ["-1", "nan"]},
    "train/teacher.py": {
        "--out runs run.steps=1 run.show_every=0": [
            "run.seed=-1",
            "run.steps=0",
            "videos=0",
            "latents=-1",
            "optimiser.lr=-1",
            "optimiser.lr=.nan",
            "model=nope",
            "start=nope",
            "noising.shares={nope: 1}",
            "run.tell_every=0",
            "average.keep=2",
            "data.dropped=5",
            "data.kind=nope",
            "data={kind: latents, folder: nope}",
            "run.attention=nope",
            "nope=1",
        ],
        "--out": ["/proc/x", "empty.png"],
        "--out runs --resume": ["nope"],
        "--out runs --recipe": ["nope", "nope.yaml", "bad.yaml"],
    },
    "train/distill.py": {
        "--out runs run.steps=1 run.show_every=0": [
            "batch=0",
            "batch=-3",
            "teacher=nope",
            "teacher=.",
            "practice.groups=0",
            "practice.kind=nope",
            "levels=[3,4]",
            "practice.behind=-1",
            "ratio=0",
            "stream=nope",
            "changes=[layout.chunk=0]",
            "loss=nope",
            "window=0",
        ]
    },
    "train/encode.py": {
        "--out runs": ["nope", "nope.csv"],
        ". --out": ["/proc/x", "empty.png"],
        ". --out runs --latents": COUNTS,
    },
}


@pytest.mark.slow
def test_no_script_takes_what_is_bad(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text(PROMPT)
    rng = random.Random(SEED)
    every = [
        (script, before, value)
        for script, options in ARGUMENTS.items()
        for before, values in options.items()
        for value in values
    ]
    for script, before, value in rng.sample(every, SCRIPTS):
        words = before.split()
        words = [*words[:-1], f"{words[-1]}={value}"] if before and words[-1][0] == "-" else [*words, value]
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        said = f"{ended.value.code}\n{''.join(capsys.readouterr())}"
        assert ended.value.code, (script, words, said)
        assert "Traceback" not in said, (script, words, said)
        check_refusal(value, said)
