"""What `rollforce identify` shows: what a file is, whether it streams here, and the command to go on with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from rollforce.checkpoints.catalog import preset_file
from rollforce.checkpoints.identity import Identity
from rollforce.config import build
from rollforce.engine.budget.fit import Fit, fit
from rollforce.engine.budget.model_sizes import UMT5_XXL, WAN_TEXT, ModelSizes, WanDecoding, sizes_of
from rollforce.engine.budget.requirements import MemorySetup
from rollforce.engine.settings import StreamSettings
from rollforce.models.runtime.choices import pick_device, pick_dtype
from rollforce.models.transformer.transformer import TransformerConfig


def memory_of(found: Identity) -> Fit | None:
    """Return what a stream of it takes of this machine's memory; None if it cannot stream, whatever
    there is, or its heads are not known."""
    streams = found.kind == "model" or bool(found.config)
    if not streams or found.obstacles or found.causal is False:
        return None
    name, device = str(found.path), pick_device("auto")
    sizes = sizes_of(found.path) if found.kind == "model" else ModelSizes(
        name, TransformerConfig(**found.config), WanDecoding(), UMT5_XXL, WAN_TEXT, found.stream or "self_forcing")
    stream = build(StreamSettings, preset_file(found.stream or sizes.stream), overrides=sizes.changes)
    return fit(MemorySetup(sizes, stream, sizes.size, pick_dtype("auto", device), device))


def describe(found: Identity, memory: Fit | None) -> dict[str, Any]:
    """Return it as plain data; `fits` is null where no memory helps."""
    told = {name: value for name, value in dataclasses.asdict(found).items() if name != "config"}
    return told | {"path": str(found.path), "fits": memory and memory.helps, "memory": memory and {
        "needs": memory.needs, "free": memory.free, "then": memory.then, "device": str(memory.setup.device),
        "remedies": [remedy.option for remedy in memory.remedies]}}  # fmt: skip


def show(found: Identity, memory: Fit | None) -> None:
    """Print it for a person."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(highlight=False, soft_wrap=True, markup=False), Table.grid(padding=(0, 2))
    console.print(f"{found.path}: {found.what}")
    for name, value in _rows(found, memory):
        table.add_row(name, value)
    console.print(table)
    if found.then:
        console.print(f"go on with: {found.then}")


def _rows(found: Identity, memory: Fit | None) -> Iterator[tuple[str, str]]:
    yield from ((name, value) for name, value in (("family", found.family), ("format", found.format)) if value)
    if found.kind in ("model", "transformer"):
        causal = {True: "yes", False: "no", None: "not known: nothing in it tells"}[found.causal]
        yield "causal", causal + _by(found.causal_by)
    if found.kind in ("model", "transformer", "lora", "record"):
        yield "licence", (found.licence or "not known: say it with --licence") + _by(found.licence_by)
    if found.stream:
        yield "stream", found.stream + _by(found.stream_by)
    if facts := {name: value for name, value in found.facts.items() if value not in (None, "", [], {})}:
        yield "holds", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    yield from (("needs", need) for need in found.needs)
    if found.kind in ("model", "transformer"):
        yield "streams", _streams(found, memory)
    else:
        yield from (("but", reason) for reason in found.obstacles)


def _by(how: str) -> str:
    return f" ({how})" if how else ""


def _streams(found: Identity, memory: Fit | None) -> str:
    if found.obstacles:
        return f"no. {' '.join(found.obstacles)}"
    once = "" if found.kind == "model" else "once converted, "
    if found.causal is False:
        return "no: it is a bidirectional model, a teacher to distil from"
    if memory is None:
        return "not known: how many heads it has is said by a config.json or its base alone"
    sure = "" if found.causal else "if it is a causal student, "
    return f"{once}{sure}{'yes. ' if memory.fits else ''}{memory.message()}"
