"""The papers' claims at this scale: train a student per method from one teacher, then compare their long streams.

    OMP_NUM_THREADS=1 python train/claims.py --out runs/claims --steps 300              trains; goes on where it stopped
    OMP_NUM_THREADS=1 python train/claims.py --out runs/claims --steps 300 --evaluate   then streams and compares

All students see the same prompts in the same order, with the same batch, teacher, guidance and number of updates. The
evaluation is made hard on purpose: two things that must keep their colour and shape, out of the picture for two
seconds in every lap, few steps, no guidance, 60 s, of which the first and the last 10 are judged (a study found that an
easy world does not tell the methods apart).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from rollforce.errors import call_main
from rollforce.training.run import run_program, train_once
from rollforce.video.duration import duration_argument
from rollforce.video.values import check_arguments, make_folder

ROOT = Path(__file__).resolve().parents[1]
SINK = "cache=[{kind: sink, latents: 3}, {kind: window, latents: 6}]"  # as many as the window alone
ROLLING_SINK = "cache=[{kind: sink, latents: 3}, {kind: window, latents: 3}]"  # beside its window, which is one chunk
ABSOLUTE = ("stepping.denoise.positions=absolute", "stepping.commit.positions=absolute")
ALONE = "practice.switch=0"  # one prompt per stream, as in these papers
BEHIND = (ALONE, "practice.behind=9")  # so that all students are judged on 12 latents
ONE_STEP = "layout.levels=[1]"
LESSONS = "practice={kind: lessons, latents: [21], last: 21, leak: %s}"

# Student: settings of train/distill.py. The names in START are made by train/causal.py.
STUDENTS: dict[str, tuple[str, ...]] = {
    "causvid": ("stream=chunkwise", "practice={kind: forced}"),
    "self_forcing": ("stream=chunkwise", *BEHIND),
    "rolling_forcing": ("stream=rolling", ALONE),
    "self_forcing_sink": ("stream=chunkwise", *BEHIND, f"changes=['{SINK}']"),
    "two_steps": ("stream=chunkwise", *BEHIND, "changes=['layout.levels=[1, 0.5]']"),
    "one_step": ("stream=chunkwise", *BEHIND, f"changes=['{ONE_STEP}']"),
    "causvid_one_step": ("stream=chunkwise", "practice={kind: forced}", f"changes=['{ONE_STEP}']"),
    "from_diffusion_forcing": ("stream=chunkwise", *BEHIND, "start={out}/start_diffusion_forcing/final"),
    "from_ode": ("stream=chunkwise", *BEHIND, "start={out}/start_ode/final"),
    "from_consistency": ("stream=chunkwise", *BEHIND, "start={out}/start_consistency/final"),
    "detached": ("stream=chunkwise", LESSONS % "false"),
    "leaking": ("stream=chunkwise", LESSONS % "true"),
}
START = ("diffusion_forcing", "ode", "consistency")

# Run: (student, stream, changes). Compared with the first.
RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Self Forcing": ("self_forcing", "chunkwise", ()),
    "CausVid": ("causvid", "chunkwise", ()),
    "Rolling Forcing": ("rolling_forcing", "rolling", ()),
    "Self Forcing, sink": ("self_forcing", "chunkwise", (SINK,)),
    "Self Forcing, sink, absolute": ("self_forcing", "chunkwise", (SINK, *ABSOLUTE)),
    "Self Forcing, sink in training": ("self_forcing_sink", "chunkwise", (SINK,)),
    "CausVid, sink": ("causvid", "chunkwise", (SINK,)),
    "CausVid, sink, absolute": ("causvid", "chunkwise", (SINK, *ABSOLUTE)),
    "Rolling Forcing, sink": ("rolling_forcing", "rolling", (ROLLING_SINK,)),
    "Rolling Forcing, sink, absolute": ("rolling_forcing", "rolling", (ROLLING_SINK, *ABSOLUTE)),
    "two steps": ("two_steps", "chunkwise", ("layout.levels=[1, 0.5]",)),
    "one step": ("one_step", "chunkwise", (ONE_STEP,)),
    "CausVid, one step": ("causvid_one_step", "chunkwise", (ONE_STEP,)),
    "from diffusion forcing": ("from_diffusion_forcing", "chunkwise", ()),
    "from ODE pairs": ("from_ode", "chunkwise", ()),
    "from consistency": ("from_consistency", "chunkwise", ()),
    "whole lessons, detached": ("detached", "chunkwise", ()),
    "whole lessons, leaking": ("leaking", "chunkwise", ()),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--steps", type=int, default=300, help="updates per student")
    p.add_argument("--teacher", default="assets/tiny-teacher")
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--only", nargs="*", choices=STUDENTS, default=list(STUDENTS), help="students to train")
    p.add_argument("--evaluate", action="store_true")
    p.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS), help="to evaluate; against the first")
    p.add_argument("--prompts", type=int, default=16)
    p.add_argument("--seeds", type=int, default=4)
    p.add_argument("--seconds", type=duration_argument, default=60)
    args = p.parse_args()
    check_arguments(args, counts=("steps", "processes", "prompts", "seeds"), seconds=("seconds",))
    make_folder(args.out, "--out")
    if args.evaluate:
        evaluate(args)
        return
    for student in args.only:
        settings = [s.format(out=args.out) if s.startswith("start=") else s for s in STUDENTS[student]]
        for method in START:
            if student == f"from_{method}":
                stage(args, "causal", f"start_{method}", f"method={method}")
        stage(args, "distill", student, *settings)


def stage(args: argparse.Namespace, script: str, name: str, *settings: str) -> None:
    """Train into OUT/NAME/final, unless that is there."""
    print(f"--- {name}", flush=True)
    train_once(ROOT / "train" / f"{script}.py", args.out / name, f"run.steps={args.steps}", f"teacher={args.teacher}",
               "run.show_every=0", "data.two=0.5", "data.alike=0.4", *settings, processes=args.processes)


def evaluate(args: argparse.Namespace) -> None:
    """Stream every run whose student is there; JSON, Markdown and sheets go to OUT."""
    runs = {
        name: {"model": str(args.out / student / "final"), "stream": stream, "overrides": list(changes)}
        for name, (student, stream, changes) in ((name, RUNS[name]) for name in args.runs)
        if (args.out / student / "final" / "model.yaml").is_file()
    }
    (args.out / "runs.yaml").write_text(yaml.safe_dump({"runs": runs}, sort_keys=False))
    run_program(
        ROOT / "infer" / "evaluate.py", "--runs", args.out / "runs.yaml", "--prompts", args.prompts,
        "--seeds", args.seeds, "--seconds", args.seconds, "--things", 2, "--ends", "--together", 16, "--resume",
        "--json", args.out / "claims.json", "--markdown", args.out / "claims.md", "--sheet", args.out / "sheet.png")


if __name__ == "__main__":
    call_main(main)
