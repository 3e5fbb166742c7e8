"""What `rollforce plan` asks for and shows: words typed in, a table or JSON out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rollforce.config import build, resource
from rollforce.engine.budget.fit import TILES, Fit
from rollforce.engine.budget.model_sizes import sizes_of
from rollforce.engine.budget.requirements import MemorySetup, needs_with_prompt
from rollforce.engine.settings import StreamSettings
from rollforce.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class PlanRequest:
    """What was typed; None is what was not. `size` is (height, width)."""

    model: str = "tiny"
    stream: str | None = None
    size: tuple[int, int] | None = None
    device: str = "auto"
    dtype: str = "auto"
    offload: tuple[str, ...] = ()
    window: int | None = None
    quantize: str | None = None
    tiling: bool = False
    decoder: str | None = None

    def setup(self) -> MemorySetup:
        """What it asks for. A device that is not here may be planned for if its free memory is given."""
        sizes, device = sizes_of(self.model), _device(self.device)
        if self.dtype not in ("auto", *DTYPES):
            raise ConfigError(f"dtype {self.dtype!r} is not known. Use auto, {', '.join(DTYPES)}.")
        natural = torch.bfloat16 if device.type == "cuda" else torch.float32
        setup = MemorySetup(
            sizes, build(StreamSettings, _preset(self.stream or sizes.stream)), self.size or sizes.size,
            DTYPES.get(self.dtype, natural), device, self.offload, self.quantize, TILES if self.tiling else None,
            small=self.decoder is not None,
        )  # fmt: skip
        if self.window is None:
            return setup
        shift = setup.stream.layout.build().shift
        if self.window < shift or setup.window is None:
            raise ConfigError(f"--window {self.window}: at least one chunk, {shift} latents, where there is a window.")
        return setup.with_window(self.window)


def told(found: Fit) -> dict[str, Any]:
    """The answer as plain data; bytes are whole numbers."""
    setup = found.setup
    return {
        "model": setup.sizes.name, "size": f"{setup.size[1]}x{setup.size[0]}", "device": str(setup.device),
        "dtype": str(setup.dtype).removeprefix("torch."), "window": setup.window,
        "parts": [dataclasses.asdict(part) for part in found.parts], "needs": found.needs,
        "needs_with_prompt": needs_with_prompt(found.parts), "free": found.free, "fits": found.fits,
        "then": found.then, "helps": found.helps, "remedies": [dataclasses.asdict(remedy) for remedy in found.remedies],
    }  # fmt: skip


def show(found: Fit) -> None:
    """The answer for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    data = told(found)
    console = Console(highlight=False, soft_wrap=True)
    table = Table("part", "GB", "", title=f"{data['model']}, {data['size']}, {data['dtype']} on {data['device']}",
                  title_justify="left")  # fmt: skip
    table.columns[1].justify = "right"
    for part in found.parts:
        table.add_row(part.name, gigabytes(part.bytes), part.note)
    table.add_section()
    table.add_row("together", gigabytes(found.needs), "the most at once")
    if (beside := needs_with_prompt(found.parts)) > found.needs:
        table.add_row("with a prompt", gigabytes(beside), "if one that is not in the cache comes while streaming")
    table.add_row("free", gigabytes(found.free), str(found.setup.device))
    for remedy in found.remedies:
        table.add_row(remedy.option, f"-{gigabytes(remedy.saves)}", "")
    if found.remedies:
        table.add_row("then", gigabytes(found.then), "")
    console.print(table)
    verdict = "fits" if found.fits else "fits with these options" if found.helps else found.message()
    console.print(Text(verdict, style="green" if found.helps else "red"))


def gigabytes(count: int) -> str:
    """Three digits at most behind a point: 11.36, 0.094, 0.0003."""
    size = count / 1e9
    return f"{size:.2f}" if size >= 1 else f"{size:.3g}"


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known. Use auto, cpu, cuda, cuda:1 or mps.") from error


def _preset(stream: str) -> Path:
    if stream.endswith((".yaml", ".yml")):
        if not Path(stream).is_file():
            raise ConfigError(f"There is no stream file {stream}.")
        return Path(stream)
    return resource(f"configs/stream/{stream}.yaml")
