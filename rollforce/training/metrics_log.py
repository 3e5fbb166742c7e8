"""The record of a run: metrics.jsonl, TensorBoard, contact sheets, and the table of networks it begins with."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Journal:
    """Writes under `out`; does nothing where `active` is false (all processes but one)."""

    def __init__(self, out: Path, active: bool = True) -> None:
        self.out, self.active = out, active
        self._sums: dict[str, list[float]] = {}
        self._begun = self._told = time.perf_counter()
        self._board = _board(out / "tensorboard") if active else None
        if active:
            out.mkdir(parents=True, exist_ok=True)

    def note(self, **numbers: float) -> None:
        """Remember numbers until they are told as means."""
        for name, value in numbers.items():
            self._sums.setdefault(name, []).append(value)

    def tell(self, step: int, **numbers: float) -> None:
        """Write the means of what was noted since the last time, and `numbers` as they are."""
        if not self.active:
            return
        now = time.perf_counter()
        entry: dict[str, float] = {"step": step, "seconds": round(now - self._begun, 1)}
        entry |= {name: _short(sum(values) / len(values)) for name, values in self._sums.items()}
        entry |= {name: _short(value) for name, value in numbers.items()}
        self._sums, self._told = {}, now
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for name, value in entry.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        log.info("%s", "  ".join(f"{name} {value:g}" for name, value in entry.items()))

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Save a contact sheet as OUT/NAME_STEP.png."""
        if not self.active:
            return
        from PIL import Image

        Image.fromarray(image_HWC).save(self.out / f"{name}_{step:06d}.png")
        if self._board is not None:
            self._board.add_image(name, image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def networks_table(networks: Mapping[str, nn.Module], optimised: tuple[str, ...], processes: int = 1) -> str:
    """Parameters and memory of each network; an optimised one also holds gradients and two moments in float32.

    `processes`: over how many the weights are sharded."""
    lines = [f"{'network':12s}{'parameters':>14s}{'weights':>11s}{'+ training':>12s}"]
    total = 0.0
    for name, network in networks.items():
        count = sum(p.numel() for p in network.parameters())
        weights = sum(p.numel() * p.element_size() for p in network.parameters()) / processes
        training = 12 * count / processes if name in optimised else 0.0
        total += weights + training
        lines.append(f"{name:12s}{count:14,d}{_size(weights):>11s}{_size(training) if training else '':>12s}")
    where = f" on each of {processes} processes" if processes > 1 else ""
    return "\n".join([*lines, f"{'in all':12s}{'':14s}{_size(total):>11s}{where}, without activations"])


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _short(value: float) -> float:
    return float(f"{float(value):.6g}")


def _board(folder: Path):  # type: ignore[no-untyped-def]
    """A TensorBoard writer; None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (pip install 'rollforce[train]'): only metrics.jsonl is written")
        return None
    return SummaryWriter(str(folder))


def psnr(video_BFHWC: Tensor, truth_BFHWC: Tensor, weight_BFHW: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of videos in 0..1, over all pixels or weighted ones."""
    error = (video_BFHWC.float() - truth_BFHWC.float()).square().mean(-1)
    if weight_BFHW is not None:
        error = (error * weight_BFHW).sum() / weight_BFHW.sum()
    return -10 * math.log10(float(error.mean()) + 1e-12)


def border_ratio(video_BFHWC: Tensor, every: int) -> float:
    """Mean |frame difference| where a new latent begins, divided by that inside latents of `every` frames."""
    step = (video_BFHWC[:, 1:].float() - video_BFHWC[:, :-1].float()).abs().mean(dim=(0, 2, 3, 4))
    border = torch.arange(1, video_BFHWC.shape[1]) % every == 0
    return float(step[border].mean() / step[~border].mean())
