"""Memories that need training: the bundled student tuned for each; and how good every preset is after ten minutes.

    OMP_NUM_THREADS=1 python train/memory.py --out runs/memory                           tunes; goes on where it stopped
    OMP_NUM_THREADS=1 python train/memory.py --out runs/memory --evaluate plain tuned    presets as they are, and tuned
    python infer/memory_table.py --quality runs/memory/plain.json --tuned runs/memory/tuned.json

Everything else is as in the bundled student's own distillation (configs/train/distill_tiny.yaml).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from rollforce.checkpoints.catalog import presets
from rollforce.errors import call_main
from rollforce.training.run import run_program, train_once
from rollforce.video.duration import duration_argument
from rollforce.video.values import check_arguments, make_folder

ROOT = Path(__file__).resolve().parents[1]
# Presets whose students were trained with them. `causal_forcing` streams as `self_forcing` does.
TUNED = ("anchor_forcing", "causvid", "chunkwise", "context_forcing", "hybrid_forcing", "knot_forcing", "longlive",
         "longlive2", "motionstream", "reward_forcing", "rolling_forcing", "self_forcing", "shotstream", "streamdit")
FIRST = "rolling"  # what the bundled model was distilled for: all others are compared with it


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--steps", type=int, default=100, help="updates of each student")
    p.add_argument("--processes", type=int, default=2, help="that share a training, or the streams")
    p.add_argument("--only", nargs="*", choices=presets(), default=presets(), metavar="PRESET")
    p.add_argument("--evaluate", nargs="+", choices=("plain", "tuned"), default=())
    p.add_argument("--prompts", type=int, default=8)
    p.add_argument("--seconds", type=duration_argument, default=600)
    args = p.parse_args()
    check_arguments(args, counts=("steps", "processes", "prompts"), seconds=("seconds",))
    make_folder(args.out, "--out")
    chosen = [name for name in args.only if name in TUNED]
    for kind in args.evaluate:
        tuned = {name: str(args.out / name / "final") for name in chosen}
        if models := dict.fromkeys(args.only, "tiny") if kind == "plain" else tuned:
            judge(args, kind, models)
    for name in chosen if not args.evaluate else ():
        print(f"--- {name}", flush=True)
        train_once(
            ROOT / "train" / "distill.py", args.out / name, "--recipe", "distill_tiny", f"stream={name}",
            f"start={ROOT / 'assets' / 'tiny'}", "student.lr=1e-4", "practice.behind=9", f"run.steps={args.steps}",
            "run.show_every=0", processes=args.processes)


def judge(args: argparse.Namespace, name: str, models: dict[str, str]) -> None:
    """Stream every preset with its model. OUT/NAME.json is the report."""
    ordered = sorted(models, key=lambda preset: preset != FIRST)
    runs = {preset: {"model": models[preset], "stream": preset} for preset in ordered}
    args.out.mkdir(parents=True, exist_ok=True)
    settings = args.out / f"{name}.yaml"
    settings.write_text(yaml.safe_dump({"runs": runs}, sort_keys=False))
    run_program(
        ROOT / "infer" / "evaluate.py", "--runs", settings, "--ends", "--prompts", args.prompts,
        "--together", args.prompts, "--seconds", args.seconds, "--workers", args.processes, "--resume",
        "--json", args.out / f"{name}.json", "--markdown", args.out / f"{name}.md",
        "--sheet", args.out / f"{name}.png")


if __name__ == "__main__":
    call_main(main)
