"""Score a teacher as the oracle scores streams: clips of held-out prompts, all latents together, with guidance.

    OMP_NUM_THREADS=1 python train/judge.py --teacher assets/tiny-teacher --prompts 64 --scale 2
    OMP_NUM_THREADS=1 python train/judge.py --teacher runs/teacher/final --things 2 --sheet teacher.png

A student should come near these numbers; infer/evaluate.py gives its own, for the same prompts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rollforce.errors import call_main
from rollforce.evaluation.report import interval
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.training.data import path_of
from rollforce.training.network import Network, sample
from rollforce.video.contact_sheet import contact_sheet
from rollforce.video.values import check_arguments
from rollforce.world import caption, sample_scene, wish_of
from rollforce.world.eyes import Eyes
from rollforce.world.oracle import score

SHOWN = ("scene", "colour", "motion", "shape", "count", "both", "whole", "shape_per_frame", "flicker")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--teacher", default="assets/tiny-teacher", help="folder with transformer/ and text/")
    p.add_argument("--autoencoder", default="assets/tiny/autoencoder")
    p.add_argument("--prompts", type=int, default=64)
    p.add_argument("--things", type=int, default=1, choices=(1, 2))
    p.add_argument("--scale", type=float, default=2.0, help="guidance: free + scale * (wished - free)")
    p.add_argument("--steps", type=int, default=16)
    p.add_argument("--latents", type=int, default=15)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--sheet", type=Path)
    args = p.parse_args()
    check_arguments(args, counts=("prompts", "steps", "latents", "size"))
    torch.set_num_threads(1)
    teacher = Network.load(path_of(args.teacher)).requires_grad_(False)
    autoencoder, eyes = TinyAutoencoder.load(path_of(args.autoencoder)), Eyes.load()
    scenes = [sample_scene(n, count=args.things, held_out=True) for n in range(args.prompts)]  # as infer/evaluate.py
    prompts = [caption(scene, n, full=True) for n, scene in enumerate(scenes)]
    side = args.size // autoencoder.config.patch
    rows, pictures = [], []
    for n, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        noise = torch.randn(1, args.latents, autoencoder.config.channels, side, side,
                            generator=torch.Generator().manual_seed(n))
        video = decode_frames(sample(teacher, noise, [prompt], args.scale, args.steps), autoencoder)
        rows.append(score(video, wish_of(scene), eyes=eyes).numbers())
        pictures.append(video)
    for name in SHOWN:
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            found = interval([float(value) for value in values if value is not None])
            print(f"{name:16s} {found.mean:.3f} [{found.low:.3f} {found.high:.3f}]")
    if args.sheet:
        from PIL import Image

        at = np.linspace(0, len(pictures[0]) - 1, 8).round().astype(int).tolist()
        Image.fromarray(contact_sheet(pictures[:8], at, prompts[:8], zoom=2)).save(args.sheet)


def decode_frames(latents_BTCHW: Tensor, autoencoder: TinyAutoencoder) -> np.ndarray:
    """Return the frames of the first video, uint8 [F, H, W, 3]."""
    with torch.no_grad():
        video, _ = autoencoder.decode(latents_BTCHW)
    return np.asarray(video[0].mul(255).round().byte().numpy())


if __name__ == "__main__":
    call_main(main)
