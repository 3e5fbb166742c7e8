"""The record of a training run: metrics.jsonl, TensorBoard and contact sheets, and what a person reads meanwhile."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes under `out`; does nothing where `active` is false (all processes but one). `total`: steps of the run, for
    what is said of the time that is left; None where there is no end."""

    def __init__(self, out: Path, active: bool = True, total: int | None = None) -> None:
        self.out, self.active, self.total = out, active, total
        self._first, self._started = 0, time.perf_counter()
        self._values: dict[str, list[float]] = {}
        self._begun = time.perf_counter()
        self._board = _open_board(out / "tensorboard") if active else None
        if active:
            out.mkdir(parents=True, exist_ok=True)

    def begin(self, step: int) -> None:
        """Count the time that is left from here, behind `step`."""
        self._first, self._started = step, time.perf_counter()

    def left(self, step: int) -> str:
        """Return how many steps of how many are done, and how long the others will take at the pace so far."""
        if self.total is None or step <= self._first:
            return f"step {step}"
        seconds = (time.perf_counter() - self._started) / (step - self._first) * (self.total - step)
        return f"step {step} of {self.total}, {format_duration(seconds)} left"

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
        told = (f"{name} {value:g}" for name, value in entry.items() if name != "step")
        log.info("%s", "  ".join([self.left(step), *told]))

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


def format_duration(seconds: float) -> str:
    """Return a time as a person says it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _open_board(folder: Path):  # type: ignore[no-untyped-def]
    """Return a TensorBoard writer, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (pip install 'rollforce[train]'): only metrics.jsonl is written")
        return None
    return SummaryWriter(str(folder))
