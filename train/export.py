"""Put a student and another autoencoder together as one model folder, in 16 bits.

    python train/export.py --student runs/student/final --autoencoder runs/decoder/final --out assets/tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rollforce.training.export import assemble

LIMIT_MB = 20.0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--student", type=Path, required=True, help="folder with transformer/ and text/")
    p.add_argument("--autoencoder", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--name", default="tiny")
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--fps", type=int, default=12)
    p.add_argument("--stream", default="rolling")
    args = p.parse_args()
    card = {"name": args.name, "fps": args.fps, "size": [args.size] * 2, "stream": args.stream}
    megabytes = assemble(args.student, args.autoencoder, args.out, **card)
    print(f"{args.out}: {megabytes:.2f} MB of weights")
    if megabytes > LIMIT_MB:
        raise SystemExit(f"a bundled model may take {LIMIT_MB:g} MB")


if __name__ == "__main__":
    main()
