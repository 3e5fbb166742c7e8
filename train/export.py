"""Put a trained model together as a folder that `rollforce.load` reads: 16-bit weights, settings, model card.

    python train/export.py --student runs/student --autoencoder runs/autoencoder/final --out assets/tiny
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rollforce.models.autoencoder import TinyAutoencoder
from rollforce.models.text import TextEncoder
from rollforce.models.transformer import VideoTransformer

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

    VideoTransformer.load(args.student / "transformer").half().save(args.out / "transformer")
    TextEncoder.load(args.student / "text").save(args.out / "text")
    TinyAutoencoder.load(args.autoencoder).save(args.out / "autoencoder")
    if not (args.out / "model.yaml").exists():
        size = [args.size] * 2
        card = {"name": args.name, "licence": "Apache-2.0", "fps": args.fps, "size": size, "stream": args.stream}
        (args.out / "model.yaml").write_text("".join(f"{key}: {value}\n" for key, value in card.items()))
    weights = sorted(args.out.rglob("*.safetensors"))
    for path in weights:
        print(f"{path.stat().st_size / 1e6:7.2f} MB  {path}")
    total = sum(path.stat().st_size for path in weights) / 1e6
    print(f"{total:7.2f} MB  in all")
    if total > LIMIT_MB:
        raise SystemExit(f"the weights take {total:.1f} MB; a bundled model may take {LIMIT_MB:g} MB")


if __name__ == "__main__":
    main()
