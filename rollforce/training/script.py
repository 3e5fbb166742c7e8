"""The command line that all training scripts share."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rollforce.config import build, resource
from rollforce.errors import ConfigError, RollforceError
from rollforce.training.checkpoint import latest

R = TypeVar("R")


def arguments(description: str | None, default: str) -> argparse.Namespace:
    """Recipe, overrides, --out, --resume, --export, --cpu. `default`: the recipe's name in configs/train."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("overrides", nargs="*", help="settings of the recipe, such as run.steps=400 optimiser.lr=1e-4")
    p.add_argument("--recipe", default=default, help=f"name in configs/train or a YAML file (default: {default})")
    p.add_argument("--out", type=Path, required=True, help="folder for checkpoints, metrics.jsonl and contact sheets")
    p.add_argument("--resume", default="no", help="no, auto (the newest checkpoint in --out, if any) or a checkpoint")
    p.add_argument("--export", type=Path, help="write the result here at the end")
    p.add_argument("--cpu", action="store_true", help="stay on the CPU where there is a GPU")
    return p.parse_intermixed_args()  # settings may stand between the options


def recipe_of(cls: type[R], args: argparse.Namespace) -> R:
    """The recipe that the arguments name, with their overrides."""
    path = Path(args.recipe)
    if path.suffix != ".yaml":
        path = resource(f"configs/train/{args.recipe}.yaml")
    return build(cls, path, overrides=args.overrides)


def resumed(args: argparse.Namespace) -> Path | None:
    """The checkpoint to go on from. ConfigError if a new run would write over an old one."""
    newest = latest(args.out)
    if args.resume == "auto":
        return newest
    if args.resume != "no":
        return Path(args.resume)
    if newest is not None:
        raise ConfigError(f"{args.out} holds a run ({newest.name}): pass --resume auto to go on, or another --out.")
    return None


def run(main: Callable[[], None]) -> None:
    """Run a script's main: errors of the user without a traceback, Ctrl-C without one too."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        main()
    except RollforceError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; go on from the last checkpoint with --resume auto")


def trained(program: Path, out: Path, *settings: str, processes: int = 1) -> Path:
    """Train in `out` with a program of train/, from its newest checkpoint, and export to out/final, which is returned.
    Where that is there already, nothing is done. CalledProcessError if the program fails."""
    final = out / "final"
    if not (final / "model.yaml").is_file():
        launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes) if processes > 1 else ()
        python(*launch, program, "--out", out, "--resume", "auto", "--export", final, *settings)
    return final


def python(*arguments: object) -> None:
    """Run another program with this Python."""
    subprocess.run([sys.executable, *map(str, arguments)], check=True)
