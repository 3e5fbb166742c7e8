"""Put a student and another autoencoder together as one model folder, in 16 bits.

    python train/export.py --student runs/student/final --autoencoder runs/decoder/final --out assets/tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rollforce.checkpoints.catalog import CARD, Card
from rollforce.config import build
from rollforce.errors import call_main
from rollforce.training.export import assemble
from rollforce.video.values import check_arguments, make_folder

LIMIT_MB = 20.0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--student", type=Path, required=True, help="folder with transformer/ and text/")
    p.add_argument("--autoencoder", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--name", default="tiny")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--fps", type=int, default=12)
    p.add_argument("--stream", help="a preset (default: what the student was trained for)")
    args = p.parse_args()
    check_arguments(args, counts=("size", "fps"))
    make_folder(args.out, "--out")
    trained = build(Card, args.student / CARD) if (args.student / CARD).is_file() else None
    stream, changes = (trained.stream, trained.changes) if trained else ("rolling", ())
    if args.stream:
        stream, changes = args.stream, ()
    card = Card(args.name, "Apache-2.0", args.fps, (args.size, args.size), stream, changes)
    megabytes = assemble(args.student, args.autoencoder, args.out, card)
    print(f"{args.out}: {megabytes:.2f} MB of weights")
    if megabytes > LIMIT_MB:
        raise SystemExit(f"a bundled model may take {LIMIT_MB:g} MB")


if __name__ == "__main__":
    call_main(main)
