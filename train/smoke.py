"""All stages of training for a few steps, one after the other, and a video of what came out: does everything fit?

    python train/smoke.py --out runs/smoke
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).resolve().parent
BEGUN = time.perf_counter()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/smoke"))
    out = p.parse_args().out
    autoencoder, teacher, causal, student, decoder = (
        out / stage / "final" for stage in ("autoencoder", "teacher", "causal", "student", "decoder"))
    quick = ("run.tell_every=1", "run.show_every=0")
    world = (f"data.autoencoder={autoencoder}", "data.clips=16", "data.opened=16")

    stage("autoencoder", autoencoder, *quick, "run.steps=3", "fitted=40", "batch=2", "latents=6", "drawn=2")
    stage("teacher", teacher, *quick, *world, "run.steps=3", "run.parts=2", "run.compile=false",
          "noising.images_only=1", "noising.pictures=8", "videos=1")
    stage("causal", causal, *quick, *world, "run.steps=2", f"teacher={teacher}", "videos=1", "latents=6",
          "solver_steps=4", "method=consistency")
    stage("distill", student, *quick, *world, "run.steps=3", f"teacher={teacher}", f"start={causal}", "batch=2",
          "alone=1", "ratio=1", "practice.groups=2")
    stage("autoencoder", decoder, *quick, "run.steps=2", f"encoder={autoencoder}", f"student={student}", "batch=2",
          "latents=6", "drawn=2")
    model = out / "model"
    tell("export")
    python(TRAIN / "export.py", "--student", student, "--autoencoder", decoder, "--out", model)
    tell("render")
    python("-m", "rollforce", "render", "a red ball rolls left", "--model", model, "--seconds", "3",
           "-o", out / "smoke.mp4", "--overwrite")


def stage(name: str, final: Path, *settings: str) -> None:
    """Train one stage and export it to `final`."""
    tell(name)
    python(TRAIN / f"{name}.py", "--out", final.parent, "--resume", "auto", "--export", final, *settings)


def tell(what: str) -> None:
    print(f"--- {what}, after {time.perf_counter() - BEGUN:.0f} s", flush=True)


def python(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
