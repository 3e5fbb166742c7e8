"""A run of a training script: opened from the command line, resumed, logged, saved and exported.

Each step ends with `finish_step`; what comes before it is the script's."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rollforce.checkpoints.outputs import hold
from rollforce.config import build, resource, to_dict
from rollforce.errors import ConfigError
from rollforce.errors import call_main as call_program
from rollforce.training import checkpoint, optim
from rollforce.training.data import Data, LatentFolder
from rollforce.training.export import export
from rollforce.training.fsdp import load_optimiser, load_whole, place, whole_optimiser, whole_state
from rollforce.training.network import Network, tabulate_networks
from rollforce.training.recipes import AutoencoderRecipe, CausalRecipe, DistillRecipe, Optimiser, TeacherRecipe
from rollforce.video.values import make_folder


class Lasting(Protocol):
    """What a part of the batch carries from step to step, such as its running streams."""

    def state_dict(self, part: int) -> dict[str, Any]: ...
    def load_state_dict(self, part: int, state: Mapping[str, Any]) -> None: ...


R = TypeVar("R", bound=AutoencoderRecipe | TeacherRecipe | CausalRecipe | DistillRecipe)
Validation = Callable[[], tuple[dict[str, float], np.ndarray]]
"""Returns figures and a contact sheet, uint8 [H, W, 3]."""
log = logging.getLogger(__name__)
HELD = ExitStack()  # locks of this program's runs


class Run(Generic[R]):
    """One run, of one process or of several that share out the parts of each step's batch.

    `step` counts the steps that are done. Models are not wrapped by accelerate: students are called tick by tick inside
    a rollout, which DistributedDataParallel cannot follow, so `optim.share_gradients` adds gradients up."""

    def __init__(self, recipe: type[R], description: str | None, default: str) -> None:
        """Read the command line. `default` names the recipe in configs/train that is used where none is given.

        ConfigError if the recipe or an override is wrong, if --out holds a run that is not to be resumed or that
        another process trains, or if run.parts cannot be shared out evenly among the processes."""
        args = _parse_arguments(description, default)
        named = not args.recipe.endswith(".yaml")
        path = resource(f"configs/train/{args.recipe}.yaml") if named else Path(args.recipe)
        self.recipe = build(recipe, path, overrides=args.overrides)
        self.settings = self.recipe.run
        self.out: Path = args.out
        self.exported: Path | None = args.export
        _lock(self.out)
        self.newest = _find_checkpoint(self.out, args.resume)
        make_folder(self.out, "--out")
        if self.exported:
            make_folder(self.exported.parent, "the folder of --export")
        self.accelerator = optim.open_accelerator(self.settings, args.cpu)
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.parts = range(self.accelerator.process_index, self.settings.parts, self.accelerator.num_processes)
        self.metrics = MetricsLog(self.out, self.is_main)
        self.step = 0
        self._networks: Mapping[str, nn.Module] = {}
        self._optimisers: Sequence[torch.optim.Optimizer] = ()
        self._lasting: Mapping[str, Lasting] = {}
        self._fingerprint = ""
        torch.manual_seed(self.settings.seed)

    def prepare(self, networks: Mapping[str, Network], data: Data, learn: Sequence[str],
                text_learns: bool = False) -> None:  # fmt: skip
        """Bring networks to the device as the settings say, freeze those that do not `learn`, and print their sizes.

        ConfigError if one cannot read the latents of `data`."""
        for name, network in networks.items():
            network.check_latent(name, data.latent)
            if isinstance(data, LatentFolder):
                network.check_text(name, data.text_width)
            place(network, self.settings, self.device, name in learn, text_learns and name in learn)
        if self.is_main:
            processes = self.accelerator.num_processes if self.settings.shard else 1
            log.info("%s", tabulate_networks(networks, learn, processes))

    def resume(self, networks: Mapping[str, nn.Module], optimisers: Sequence[torch.optim.Optimizer], fingerprint: str,
               lasting: Mapping[str, Lasting] | None = None) -> None:  # fmt: skip
        """Go on from the checkpoint that was asked for, if any, and keep from now on what a checkpoint consists of.

        `fingerprint`: of the data. TrainingError if the checkpoint is of other settings, data or networks."""
        self._networks, self._optimisers, self._fingerprint = networks, optimisers, fingerprint
        self._lasting = lasting or {}
        if self.newest is not None:
            self._load(self.newest, networks, optimisers, fingerprint)
        self._announce()

    def _load(self, newest: Path, networks: Mapping[str, nn.Module], optimisers: Sequence[torch.optim.Optimizer],
              fingerprint: str) -> None:  # fmt: skip
        state = checkpoint.load(newest, to_dict(self.recipe), fingerprint, self.device)
        for name, network in networks.items():
            load_whole(network, state[name], name)
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            load_optimiser(optimiser, saved)
        for part in self.parts if self._lasting else ():
            saved_part = checkpoint.load_part(newest, part, self.device)
            for name, thing in self._lasting.items():
                thing.load_state_dict(part, saved_part[name])
        self.step = state["step"]

    def _announce(self) -> None:
        """Say how much there is to do, and where it goes."""
        s, batch = self.settings, f"in {self.settings.parts} parts" if self.settings.parts > 1 else "in one part"
        begun = f", {self.step} of which are done" if self.step else ""
        if self.is_main:
            log.info("%d steps%s, each %s, on %s. Writes into %s: metrics.jsonl every %d steps, a checkpoint every %d",
                     s.steps, begun, batch, self.device, self.out, s.tell_every, s.save_every)  # fmt: skip

    def steps(self) -> Iterator[int]:
        """The steps that are left; each must end with `finish_step`."""
        self.metrics.expect(self.step, self.settings.steps)
        while self.step < self.settings.steps:
            yield self.step

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return self.accelerator.autocast()

    def backward(self, loss: Tensor, name: str, part: int) -> None:
        """Add the gradient of one part's loss, and log the loss under `name`. TrainingError if it is not finite."""
        (loss / self.settings.parts).backward()
        value = float(loss.detach())
        optim.check_finite(value, f"the loss {name} of part {part}", self.step, self.out)
        self.metrics.add(**{name: value})

    def update(self, network: nn.Module, optimisers: Sequence[torch.optim.Optimizer], settings: Optimiser,
               step: int) -> float:  # fmt: skip
        """Share out the gradients of a network, clip them and step its optimisers at the rate of `step`.

        Returns the norm of the gradient before clipping; TrainingError if it is not finite."""
        optim.set_rate(optimisers, settings.rate(step, self.settings.steps))
        norm = optim.share_and_clip(network, settings.clip)
        optim.check_finite(norm, "the norm of the gradient", self.step, self.out)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return norm

    def finish_step(self, validate: Validation | None = None, **numbers: float) -> None:
        """Count the step; log, validate and save where it is time. `numbers` are logged beside the means."""
        settings = self.settings
        self.step += 1
        last = self.step == settings.steps
        if self.step % settings.tell_every == 0:
            self.metrics.write(self.step, **numbers)
        if validate and settings.show_every and (last or self.step % settings.show_every == 0):
            figures, picture = validate()
            self.metrics.write(self.step, **figures)
            self.metrics.save_picture(self.step, picture)
        if last or self.step % settings.save_every == 0:
            self._save()

    def _save(self) -> None:
        state: dict[str, Any] = {name: whole_state(network) for name, network in self._networks.items()}
        state["optimisers"] = [whole_optimiser(optimiser) for optimiser in self._optimisers]
        for part in self.parts if self._lasting else ():
            lasting = {name: thing.state_dict(part) for name, thing in self._lasting.items()}
            checkpoint.save_part(self.out, self.step, part, lasting)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            checkpoint.save(self.out, self.step, state, to_dict(self.recipe), self._fingerprint, self.settings.keep)
        self.accelerator.wait_for_everyone()

    def export(self, network: Network, data: Data, stream: str, changes: Sequence[str] = ()) -> None:
        """Write a network to the folder of --export, if there is one, with the stream that it was trained for."""
        if self.exported:
            export(network, self.exported, data, stream, changes, self.is_main)

    def close(self) -> None:
        """End the log, the lock and the process group."""
        self.metrics.close()
        HELD.close()
        self.accelerator.end_training()


def _parse_arguments(description: str | None, default: str) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("overrides", nargs="*", help="settings of the recipe, such as run.steps=400 optimiser.lr=1e-4")
    p.add_argument("--recipe", default=default, help=f"name in configs/train or a YAML file (default: {default})")
    p.add_argument("--out", type=Path, required=True, help="folder for checkpoints, metrics.jsonl and contact sheets")
    p.add_argument("--resume", default="no", help="no, auto (the newest checkpoint in --out, if any) or a checkpoint")
    p.add_argument("--export", type=Path, help="write the result here at the end")
    p.add_argument("--cpu", action="store_true", help="stay on the CPU where there is a GPU")
    return p.parse_intermixed_args()  # settings may stand between the options


def _lock(out: Path) -> None:
    """Lock a run's folder until the program ends: the first of its processes does."""
    out.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":
        HELD.enter_context(hold(out / checkpoint.POINTER))


def _find_checkpoint(out: Path, resume: str) -> Path | None:
    """The checkpoint to go on from. ConfigError if a new run would write over an old one."""
    if resume not in ("no", "auto"):
        if not (Path(resume) / "recipe.json").is_file():
            raise ConfigError(f"--resume {resume} is no checkpoint: use auto, or one such as {out}/checkpoint-000200.")
        return Path(resume)
    newest = checkpoint.latest(out)
    if newest is not None and resume == "no":
        raise ConfigError(f"{out} holds a run ({newest.name}): pass --resume auto to go on, or another --out.")
    return newest


def call_main(main: Callable[[], None]) -> None:
    """Run a script's main: errors of the user without a traceback, Ctrl-C without one too."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with HELD:
        call_program(main, "interrupted; go on from the last checkpoint with --resume auto")


# -- programs of train/ and infer/ that are started one after the other, as those that train a whole model are ---------


def train_once(program: Path, out: Path, *settings: str, processes: int = 1) -> Path:
    """Train in `out` with a program of train/, from its newest checkpoint, and export to out/final, which is returned.

    Where that is there already, nothing is done. CalledProcessError if the program fails."""
    final = out / "final"
    if not (final / "model.yaml").is_file():
        run_program(program, "--out", out, "--resume", "auto", "--export", final, *settings, processes=processes)
    return final


def run_program(*arguments: object, processes: int = 1) -> None:
    """Run another program with this Python, in one process or in several that train together.

    CalledProcessError if it fails."""
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes) if processes > 1 else ()
    subprocess.run([sys.executable, *map(str, (*launch, *arguments))], check=True)


# -- the record of a run: metrics.jsonl, TensorBoard and contact sheets ------------------------------------------------


class MetricsLog:
    """Writes under `out`; does nothing where `active` is false (all processes but one)."""

    def __init__(self, out: Path, active: bool = True) -> None:
        self.out, self.active = out, active
        self._values: dict[str, list[float]] = {}
        self._begun = time.perf_counter()
        self._from, self._steps = 0, 0
        self._board = _open_board(out / "tensorboard") if active else None
        if active:
            out.mkdir(parents=True, exist_ok=True)

    def expect(self, step: int, steps: int) -> None:
        """Begin to count at `step`, of so many: lines say how long the rest will take."""
        self._from, self._steps, self._begun = step, steps, time.perf_counter()

    def _left(self, step: int) -> str:
        if not self._from < step < self._steps:
            return ""
        seconds = (time.perf_counter() - self._begun) / (step - self._from) * (self._steps - step)
        return f"  {timedelta(seconds=round(seconds))} left"

    def add(self, **numbers: float) -> None:
        """Remember numbers until their means are written."""
        for name, value in numbers.items():
            self._values.setdefault(name, []).append(value)

    def write(self, step: int, **numbers: float) -> None:
        """Write the means of what was added since the last time, and `numbers` as they are."""
        if not self.active:
            return
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values = {}
        entry: dict[str, float] = {"step": step, "seconds": round(time.perf_counter() - self._begun, 1)}
        entry |= {name: float(f"{float(value):.6g}") for name, value in {**means, **numbers}.items()}
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for name, value in entry.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        of = f"/{self._steps}" if self._steps else ""
        figures = "  ".join(f"{name} {value:g}{of if name == 'step' else ''}" for name, value in entry.items())
        log.info("%s%s", figures, self._left(step))

    def save_picture(self, step: int, image_HWC: np.ndarray) -> None:
        """Save a contact sheet as OUT/samples_STEP.png."""
        if not self.active:
            return
        from PIL import Image

        Image.fromarray(image_HWC).save(self.out / f"samples_{step:06d}.png")
        if self._board is not None:
            self._board.add_image("samples", image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and end the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def _open_board(folder: Path):  # type: ignore[no-untyped-def]
    """Return a TensorBoard writer, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (pip install 'rollforce[train]'): only metrics.jsonl is written")
        return None
    return SummaryWriter(str(folder))
