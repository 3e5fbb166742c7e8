"""Does it fit? What a stream needs (requirements.py) against the free memory of a device, and what would make it fit.

    setup = MemorySetup(sizes_of("wan-1.3b"), stream, (480, 832), torch.bfloat16, torch.device("cuda"))
    fit(setup).fits        check_fits(setup)  # raises DoesNotFit before anything is allocated
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from rollforce.engine.budget.requirements import MemoryPart, MemorySetup, busiest, needs, needs_with_prompt, parts
from rollforce.errors import ConfigError, DoesNotFit
from rollforce.models.autoencoder.tiling import Tiling
from rollforce.models.runtime.options import check_streams

SPARE = 0.03  # share of free memory that is not planned with: libraries want workspaces
TILES = Tiling(host=True)


@dataclass(frozen=True)
class Remedy:
    """An option that saves memory, and how much more would be needed without it, the other remedies taken."""

    option: str
    saves: int


@dataclass(frozen=True)
class Fit:
    """The answer. `remedies`: as many as it takes to fit, those that cost least first; `then`: what is needed with
    them. If `helps` is False all that would save something are not enough."""

    setup: MemorySetup
    parts: tuple[MemoryPart, ...]
    free: int
    then: int
    remedies: tuple[Remedy, ...] = ()

    @property
    def needs(self) -> int:
        """The most bytes that are there at once."""
        return needs(self.parts)

    @property
    def fits(self) -> bool:
        """Whether it fits as it is."""
        return self.needs <= self.free

    @property
    def helps(self) -> bool:
        """Whether it fits with all remedies."""
        return self.then <= self.free

    def message(self) -> str:
        """Return one sentence of what is needed and what is free, and one of what to do."""
        largest = sorted((part for part in busiest(self.parts) if part.bytes >= 5e7), key=lambda part: -part.bytes)
        listed = ", ".join(f"{part.name} {part.bytes / 1e9:.1f}" for part in largest[:6])
        said = (f"Needs ~{self.needs / 1e9:.1f} GB, {self.free / 1e9:.1f} free on {self.setup.device}"
                f"{f': {listed}' if listed else ''}.")  # fmt: skip
        options = ", ".join(f"{remedy.option} (saves {remedy.saves / 1e9:.1f})" for remedy in self.remedies)
        if self.fits or not options:
            return said if self.fits else f"{said} Try a smaller --size or another device."
        if self.helps:
            return f"{said} Try {options}: then ~{self.then / 1e9:.1f} GB."
        return (f"{said} Even {options} leave ~{self.then / 1e9:.1f} GB: "
                "use a smaller --size, a smaller model or another device.")  # fmt: skip


def fit(setup: MemorySetup, free: int | None = None) -> Fit:
    """Compare the bytes of every part with `free` (None: what the device has free now), and what would make it fit.

    CheckpointError if the model cannot stream."""
    check_streams(setup.sizes.transformer, setup.sizes.name)
    free = free_bytes(setup.device) if free is None else free
    found = parts(setup)
    if needs(found) <= free:
        return Fit(setup, found, free, needs(found))
    chosen = _choose(setup, free)
    better = _apply(setup, chosen, free)
    then = needs(parts(better))
    return Fit(setup, found, free, then, tuple(
        Remedy(f"{WINDOW} {better.window}" if option == WINDOW else option,
               _needs_without(setup, chosen, option, better.window) - then) for option in chosen))  # fmt: skip


def check_fits(setup: MemorySetup, free: int | None = None) -> Fit:
    """Return `fit`, or raise DoesNotFit with the sum, what is free, and what to do. Call it before allocating."""
    found = fit(setup, free)
    if not found.fits:
        raise DoesNotFit(found.message())
    return found


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a device to plan with: those free now, less SPARE. ConfigError if it is not here."""
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if (device.index or 0) >= here.get(device.type, 0):
        raise ConfigError(f"device {str(device)!r} is not here; say how many GB are free there: --free 24.")
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + held) * (1 - SPARE))
    if device.type == "mps":
        return int((torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()) * (1 - SPARE))
    return int(psutil.virtual_memory().available * (1 - SPARE))


# -- remedies --------------------------------------------------------------------------------------------------------


def _choose(setup: MemorySetup, free: int) -> list[str]:
    """Return the options it takes, in the order in which they cost the least; or all that save something."""
    chosen: list[str] = []
    for option in OPTIONS:
        more = parts(_apply(setup, [*chosen, option], free))
        if needs_with_prompt(more) < needs_with_prompt(parts(_apply(setup, chosen, free))):
            chosen.append(option)
        if needs(parts(_apply(setup, chosen, free))) <= free:
            break
    enough = max(free, needs(parts(_apply(setup, chosen, free))))
    for option in reversed(tuple(chosen)):  # let go first of what costs most
        rest = [other for other in chosen if other != option]
        if needs(parts(_apply(setup, rest, free))) <= enough:
            chosen = rest
    return chosen


def _needs_without(setup: MemorySetup, chosen: list[str], option: str, window: int | None) -> int:
    """Return the bytes needed with all that were chosen but one."""
    rest = [other for other in chosen if other not in (option, WINDOW)]
    if WINDOW in chosen and option != WINDOW and window is not None:
        setup = setup.with_window(window)
    return needs(parts(_apply(setup, rest, 0)))


def _apply(setup: MemorySetup, options: list[str], free: int) -> MemorySetup:
    """Return the setup with these options; the window last, so that it is no shorter than it must be."""
    for option in sorted(options, key=lambda option: option == WINDOW):
        setup = OPTIONS[option](setup, free)
    return setup


def _shorten(setup: MemorySetup, free: int) -> MemorySetup:
    """Return the setup with the longest window that fits, at least one chunk."""
    windows = range(setup.stream.layout.build().shift, setup.window or 0)
    fitting = bisect_right(windows, free, key=lambda latents: needs(parts(setup.with_window(latents))))
    return setup.with_window(windows[max(fitting - 1, 0)]) if windows else setup


def _weights(setup: MemorySetup, **changes: Any) -> MemorySetup:
    """Return the setup with weights laid out otherwise, unless they are there already."""
    return setup if setup.loaded else dataclasses.replace(setup, **changes)


WINDOW = "--window"
OPTIONS: dict[str, Callable[[MemorySetup, int], MemorySetup]] = {
    "--offload text": lambda setup, free: _weights(setup, offload=(*setup.offload, "text")),
    WINDOW: _shorten,
    "--quantize int8": lambda setup, free: _weights(setup, quantize=setup.quantize or "int8"),
    "--dtype bfloat16": lambda setup, free: _weights(setup, dtype=min(
        setup.dtype, torch.bfloat16, key=lambda dtype: dtype.itemsize)),
    "--tiling": lambda setup, free: dataclasses.replace(setup, tiling=setup.tiling or TILES),
    "--offload blocks": lambda setup, free: _weights(setup, offload=(*setup.offload, "blocks")),
}  # fmt: skip
