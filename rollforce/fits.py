"""Does it fit? What a stream needs (needs.py) against the free memory of a device, and what would make it fit.

    setup = Setup(sizes_of("wan-1.3b"), stream, (480, 832), torch.bfloat16, torch.device("cuda"))
    fit(setup).fits        check_fits(setup)  # raises DoesNotFit before anything is allocated
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import torch

from rollforce.errors import ConfigError, DoesNotFit
from rollforce.models.tiling import Tiling
from rollforce.needs import Part, Setup, needs, parts

SPARE = 0.03  # share of free memory that is not planned with: libraries want workspaces
TILES = Tiling(host=True)


@dataclass(frozen=True)
class Remedy:
    """An option that saves memory: what it saves alone, and `needs`, the bytes needed with it and those before it."""

    option: str
    saves: int
    needs: int


@dataclass(frozen=True)
class Fit:
    """The answer. `remedies`: in order, as many as it takes to fit; if `helps` is False all of them are not enough."""

    setup: Setup
    parts: tuple[Part, ...]
    free: int
    remedies: tuple[Remedy, ...] = ()

    @property
    def needs(self) -> int:
        return needs(self.parts)

    @property
    def fits(self) -> bool:
        return self.needs <= self.free

    @property
    def helps(self) -> bool:
        """Whether it fits with all remedies."""
        return self.fits or bool(self.remedies and self.remedies[-1].needs <= self.free)

    def message(self) -> str:
        """One sentence of what is needed and what is free, and one of what to do."""
        largest = sorted((part for part in self.parts if part.bytes >= 5e7), key=lambda part: -part.bytes)
        listed = ", ".join(f"{part.name} {part.bytes / 1e9:.1f}" for part in largest[:6])
        said = (f"Needs ~{self.needs / 1e9:.1f} GB, {self.free / 1e9:.1f} free on {self.setup.device}"
                f"{f': {listed}' if listed else ''}.")  # fmt: skip
        options = ", ".join(f"{remedy.option} (saves {remedy.saves / 1e9:.1f})" for remedy in self.remedies)
        if self.fits or not options:
            return said if self.fits else f"{said} Try a smaller --size or another device."
        if self.helps:
            return f"{said} Try {options}: then ~{self.remedies[-1].needs / 1e9:.1f} GB."
        return (f"{said} Even {options} leave ~{self.remedies[-1].needs / 1e9:.1f} GB: "
                "use a smaller --size, a smaller model or another device.")  # fmt: skip


def fit(setup: Setup, free: int | None = None) -> Fit:
    """Bytes of every part against `free` (None: what the device has free now), and what would make it fit."""
    free = free_bytes(setup.device) if free is None else free
    found = parts(setup)
    if needs(found) <= free:
        return Fit(setup, found, free)
    return Fit(setup, found, free, _remedies(setup, free))


def check_fits(setup: Setup, free: int | None = None) -> Fit:
    """`fit`, or DoesNotFit with the sum, what is free, and what to do: call it before anything is allocated."""
    found = fit(setup, free)
    if not found.fits:
        raise DoesNotFit(found.message())
    return found


def free_bytes(device: torch.device) -> int:
    """Memory of a device that may be planned with: what is free now, less SPARE. ConfigError if it is not here."""
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


def _remedies(setup: Setup, free: int) -> tuple[Remedy, ...]:
    """The options that save something, in the order in which they cost the least: those it takes, or all of them."""
    chosen: list[str] = []
    for option in OPTIONS:
        saved = needs(parts(_with(setup, chosen, free))) - needs(parts(_with(setup, [*chosen, option], free)))
        if saved > 0:
            chosen.append(option)
        if _fits_with(setup, chosen, free):
            break
    for option in reversed(tuple(chosen)):  # let go first of what costs most
        rest = [other for other in chosen if other != option]
        if _fits_with(setup, rest, free):
            chosen = rest
    return tuple(_told(setup, chosen, _with(setup, chosen, free).window))


def _told(setup: Setup, chosen: list[str], window: int | None) -> Iterator[Remedy]:
    """Each option with what it saves after those before it."""
    now = setup
    for option in chosen:
        after = now.with_window(window) if option == WINDOW and window else OPTIONS[option](now, 0)
        yield Remedy(f"{WINDOW} {window}" if option == WINDOW else option,
                     needs(parts(now)) - needs(parts(after)), needs(parts(after)))  # fmt: skip
        now = after


def _with(setup: Setup, options: list[str], free: int) -> Setup:
    """With these options; the window last, so that it is no shorter than it must be."""
    for option in sorted(options, key=lambda option: option == WINDOW):
        setup = OPTIONS[option](setup, free)
    return setup


def _fits_with(setup: Setup, options: list[str], free: int) -> bool:
    return needs(parts(_with(setup, options, free))) <= free


def _offloaded(setup: Setup, free: int) -> Setup:
    return setup if setup.loaded else dataclasses.replace(setup, offload=(*setup.offload, "text"))


def _shorter(setup: Setup, free: int) -> Setup:
    """The longest window that fits, at least one chunk."""
    longest, shortest = setup.window or 0, setup.stream.layout.build().shift
    for latents in range(longest - 1, shortest - 1, -1):
        if _fits_with(setup.with_window(latents), [], free):
            return setup.with_window(latents)
    return setup.with_window(shortest) if longest > shortest else setup


def _quantised(setup: Setup, free: int) -> Setup:
    return setup if setup.loaded or setup.quantize else dataclasses.replace(setup, quantize="int8")


def _halved(setup: Setup, free: int) -> Setup:
    smaller = setup.dtype.itemsize > 2 and not setup.loaded
    return dataclasses.replace(setup, dtype=torch.bfloat16) if smaller else setup


def _tiled(setup: Setup, free: int) -> Setup:
    return dataclasses.replace(setup, tiling=TILES) if setup.tiling is None else setup


def _in_turns(setup: Setup, free: int) -> Setup:
    return setup if setup.loaded else dataclasses.replace(setup, offload=(*setup.offload, "blocks"))


WINDOW = "--window"
OPTIONS: dict[str, Callable[[Setup, int], Setup]] = {
    "--offload text": _offloaded, WINDOW: _shorter, "--quantize int8": _quantised, "--dtype bfloat16": _halved,
    "--tiling": _tiled, "--offload blocks": _in_turns,
}  # fmt: skip
