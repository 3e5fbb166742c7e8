"""What `rollforce plan` asks for and shows: words typed in, a table or JSON out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rollforce.checkpoints.catalog import bundled, preset_file
from rollforce.checkpoints.decoders import WAN, KnownDecoder, find_decoder
from rollforce.checkpoints.hub import is_repository
from rollforce.checkpoints.lora_scale import split_lora
from rollforce.checkpoints.obstacles import wrong_decoder
from rollforce.checkpoints.parts import decoder_part
from rollforce.cli.options import PlanOptions
from rollforce.cli.record import as_setting
from rollforce.config import build
from rollforce.engine.budget.fit import TILES, Fit
from rollforce.engine.budget.model_sizes import CONFIGS, sizes_of
from rollforce.engine.budget.requirements import MemorySetup, needs_with_prompt
from rollforce.engine.settings import StreamSettings
from rollforce.errors import CheckpointError
from rollforce.models.runtime.choices import pick_device, pick_dtype
from rollforce.models.runtime.options import RuntimeOptions
from rollforce.models.transformer.transformer import TransformerConfig, VideoTransformer
from rollforce.streaming.load import find_model
from rollforce.video.size import parse_size


def setup_of(options: PlanOptions) -> MemorySetup:
    """Return what was typed as a setup. ConfigError.

    A device that is not here may be planned for if its free memory is given; so may a decoder or a LoRA whose file is
    not. CheckpointError for a LoRA of another model."""
    name, decoder = options.model or "tiny", options.running.get("decoder")
    runtime = {field: value for field, value in options.running.items() if field not in ("loras", "decoder")}
    running = RuntimeOptions(**{field: as_setting(value) for field, value in runtime.items()})
    known = _check_streams(name, options.stream, running, decoder)
    sizes, device = sizes_of(name), pick_device(options.device or "auto")
    _check_loras(options.running.get("loras") or (), sizes.transformer)
    changes = () if options.stream else sizes.changes
    stream = build(StreamSettings, preset_file(options.stream or sizes.stream), overrides=changes)
    setup = MemorySetup(sizes, stream, parse_size(options.size) if options.size else sizes.size,
                        pick_dtype(options.dtype or "auto", device), device, running.offload, running.quantize,
                        TILES if running.tiling else None, small=known is not None and not known.pruned,
                        pruned=known is not None and known.pruned)  # fmt: skip
    return setup if options.window is None else setup.with_window(options.window)


def _check_loras(loras: Sequence[str], config: TransformerConfig) -> None:
    there = [lora for lora in loras if split_lora(lora)[0].exists()]
    if there:
        from rollforce.models.runtime import lora_baking

        with torch.device("meta"):
            lora_baking.read(there, VideoTransformer(config))


def _check_streams(name: str, stream: str | None, running: RuntimeOptions, decoder: str | None) -> KnownDecoder | None:
    """Raise what `load` would of a model that is here, and return what its decoder is. CheckpointError, ConfigError."""
    known = find_decoder(decoder) if decoder else None
    if name in bundled() or Path(name).exists() or is_repository(name):
        find_model(name, stream, running.tiling, decoder, CONFIGS)
    elif known and known.family != WAN:
        raise CheckpointError(wrong_decoder(decoder_part(decoder or ""), WAN))
    return known


def describe(found: Fit) -> dict[str, Any]:
    """Return the answer as plain data; bytes are whole numbers."""
    setup = found.setup
    return {"model": setup.sizes.name, "size": f"{setup.size[1]}x{setup.size[0]}", "device": str(setup.device),
            "dtype": str(setup.dtype).removeprefix("torch."), "window": setup.window,
            "parts": [dataclasses.asdict(part) for part in found.parts], "needs": found.needs,
            "needs_with_prompt": needs_with_prompt(found.parts), "free": found.free, "fits": found.fits,
            "then": found.then, "helps": found.helps,
            "remedies": [dataclasses.asdict(remedy) for remedy in found.remedies]}  # fmt: skip


def show(found: Fit) -> None:
    """Print the answer for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    data = describe(found)
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
    """Return bytes in GB as text, such as 11.36, 0.094 or 0.0003."""
    size = count / 1e9
    return f"{size:.2f}" if size >= 1 else f"{size:.3g}"
