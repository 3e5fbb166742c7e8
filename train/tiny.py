"""The bundled model from nothing: all stages of training, one after the other, and a video of what came out.

    OMP_NUM_THREADS=1 python train/tiny.py --out runs/tiny --processes 2      hours; goes on where it was stopped
    OMP_NUM_THREADS=1 python train/tiny.py --out runs/smoke --smoke           a few steps of each: does everything fit?
    python train/tiny.py --out runs/small --model small                       128 x 128 pixels, for a GPU and 16 cores
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rollforce.errors import call_main
from rollforce.training.run import run_program
from rollforce.video.values import check_arguments, make_folder

TRAIN = Path(__file__).resolve().parent
BEGUN = time.perf_counter()
# The teacher's second round: from a lower rate, down again. Shapes are learned last.
AGAIN = ("run.seed=1", "run.steps=2600", "optimiser.lr=1e-3", "optimiser.lr_matrices=0.01", "optimiser.decay=0.6",
         "noising.images_only=0")  # fmt: skip
QUICK = ("run.tell_every=1", "run.show_every=0")
SMOKE = {
    "autoencoder": ("run.steps=3", "fitted=40", "batch=2", "latents=6", "drawn=2", "workers=0"),
    "teacher": ("run.steps=3", "run.parts=2", "run.compile=false", "noising.images_only=1", "noising.pictures=8",
                "videos=1", "data.clips=16", "data.opened=16", "data.workers=0"),
    "causal": ("run.steps=2", "videos=1", "latents=6", "solver_steps=4"),
    "distill": ("run.steps=3", "batch=2", "alone=1", "ratio=1", "practice.groups=2"),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--smoke", action="store_true", help="a few steps of each stage, causal initialisation among them")
    p.add_argument("--model", choices=("tiny", "small"), default="tiny", help="whose recipes, in configs/train")
    p.add_argument("--processes", type=int, default=1, help="that share the work")
    args = p.parse_args()
    check_arguments(args, counts=("processes",))
    make_folder(args.out, "--out")
    out, model = args.out, args.out / "model"
    autoencoder, teacher, causal, student, decoder = (
        out / stage / "final" for stage in ("autoencoder", "teacher", "causal", "student", "decoder"))
    world = f"data.autoencoder={autoencoder}"

    train_stage(args, "autoencoder", autoencoder)
    if args.model == "tiny":
        first = out / "teacher_first" / "final"
        train_stage(args, "teacher", first, world)
        train_stage(args, "teacher", teacher, world, f"start={first}", *AGAIN)
    else:
        train_stage(args, "teacher", teacher, world)
    begin = teacher  # distribution matching straight from the teacher was as good: train/LOG.md
    if args.smoke and args.model == "tiny":
        train_stage(args, "causal", causal, world, f"teacher={teacher}", "method=consistency")
        begin = causal
    train_stage(args, "distill", student, world, f"teacher={teacher}", f"start={begin}")
    train_stage(args, "autoencoder", decoder, f"encoder={autoencoder}", f"student={student}")
    size = {"tiny": 64, "small": 128}[args.model]
    run_program(TRAIN / "export.py", "--student", student, "--autoencoder", decoder, "--out", model,
                "--name", args.model, "--size", size)
    run_program("-m", "rollforce", "render", "a red ball rolls left", "--model", model, "--seconds", "3",
                "-o", out / "ball.mp4", "--overwrite")


def train_stage(args: argparse.Namespace, name: str, final: Path, *settings: str) -> None:
    """Train one stage, going on from its checkpoint if there is one, and export it to `final`."""
    print(f"--- {name} -> {final}, after {(time.perf_counter() - BEGUN) / 60:.1f} minutes", flush=True)
    quick = (*QUICK, *SMOKE[name]) if args.smoke else ()
    run_program(TRAIN / f"{name}.py", "--recipe", f"{name}_{args.model}", "--out", final.parent, "--resume", "auto",
                "--export", final, *settings, *quick, processes=1 if name == "causal" else args.processes)


if __name__ == "__main__":
    call_main(main)
