"""What `rollforce inspect` asks for and shows: a stream's memory as a picture and a table. No weights are read."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from rollforce.cache.region import RegionTier
from rollforce.checkpoints.catalog import Card, bundled, preset_file
from rollforce.checkpoints.outputs import check_plain
from rollforce.config import build, resource
from rollforce.engine.budget.model_sizes import sizes_of
from rollforce.engine.budget.requirements import MemorySetup
from rollforce.engine.dry_run import CallTrace, GroupTrace, StreamEvent, trace
from rollforce.engine.settings import StreamSettings
from rollforce.engine.transitions import NAMES, check, transition
from rollforce.errors import ConfigError
from rollforce.evaluation.memory.memory_map import Page, format_bytes, save_map
from rollforce.video.duration import parse_duration

FRAMES, WAN_FPS = 4, 16  # of a latent; of Wan
LONGEST = 3600.0


@dataclass(frozen=True)
class Inspection:
    """What was asked for, walked. `pace`: latents of a second."""

    name: str
    model: str
    stream: StreamSettings
    seconds: float
    pace: float
    calls: tuple[CallTrace, ...] = field(repr=False)


def inspect(stream: str, seconds: float | str, model: str = "tiny", overrides: Sequence[str] = (),
            events: Sequence[str] = ()) -> Inspection:  # fmt: skip
    """Walk a preset or YAML file at a model's sizes, with `events` such as "shot@10" (s). ConfigError if it cannot."""
    seconds = parse_duration(seconds, "--seconds")
    if not 0 < seconds <= LONGEST:
        raise ConfigError(f"--seconds {seconds:g} must be above 0 and at most {LONGEST:g}.")
    settings, sizes = build(StreamSettings, preset_file(stream), overrides=overrides), sizes_of(model)
    grid = MemorySetup(sizes, settings, sizes.size, torch.float32, torch.device("cpu")).grid
    dtype = torch.bfloat16 if sizes.follows_dtype else torch.float32
    fps = build(Card, resource(f"assets/{model}/model.yaml")).fps if model in bundled() else WAN_FPS
    pace = fps / FRAMES
    happens, end = dict(_event(text, pace, settings) for text in events), max(1, round(seconds * pace))
    calls = takewhile(lambda call: call.groups[-1].start < end,
                      trace(settings, sizes.transformer.shape(grid), dtype, events=happens))
    return Inspection(stream, sizes.name, settings, seconds, pace, tuple(calls))


def _event(text: str, pace: float, settings: StreamSettings) -> tuple[int, StreamEvent]:
    name, _, at = text.partition("@")
    if name not in NAMES or not at:
        raise ConfigError(f"--event {text!r} must be one of {', '.join(NAMES)}, and when: shot@10 is after 10 s.")
    change, seconds = transition(name), parse_duration(at, f"--event {text}:")
    check(change, settings.tiers)
    return round(seconds * pace), lambda rollout: change.begin(rollout, rollout.condition)


# -- the picture -------------------------------------------------------------------------------------------------------

def save(inspection: Inspection, path: Path) -> None:
    """Write the picture as a PNG."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: the picture is a PNG; call it {path.with_suffix('.png')}.")
    check_plain(path)
    save_map(inspection.calls, page(inspection), path)


def page(inspection: Inspection) -> Page:
    """Return the words around the picture."""
    stream, table = inspection.stream, inspection.stream.layout.build()
    calls = "1 call" if table.ticks == 1 else f"{table.ticks} calls"
    parts = (f"{stream.layout.kind} layout · chunks of {table.shift} latents = {table.shift / inspection.pace:g} s · "
             f"{table.slots} latents in work · {calls} a chunk")  # fmt: skip
    sights = (f"denoising: {_describe_visibility(stream.stepping.denoise)} · "
              f"writing: {_describe_visibility(stream.stepping.commit)}")  # fmt: skip
    most = {name: max(len(call.held[name]) for call in inspection.calls) for name in inspection.calls[-1].held}
    regions = {name: f"{name}, {latents} latent{'s' if latents != 1 else ''}{_purpose(stream, name)}"
               for name, latents in most.items()}  # fmt: skip
    title = f"{inspection.name}: what {inspection.seconds:g} s of video remember"
    return Page(title, (parts, sights), inspection.pace, regions)


def _purpose(stream: StreamSettings, region: str) -> str:
    """Return what a tier is for: the first words of its file."""
    tier = next((tier for tier in stream.tiers if tier.kind == region.split()[-1]), None)
    words = " ".join((sys.modules[type(tier).__module__].__doc__ or "").split("\n\n")[0].split())
    purpose = re.split(r" \(|\. |;|\.$", words.partition(": ")[2])[0] if tier else ""
    stands = " (drawn: the stretch of time it stands for)" if isinstance(tier, RegionTier) and tier.latents else ""
    return f": {purpose}{stands}" if purpose else stands


def _describe_visibility(sight: Any) -> str:
    where = sight.positions if isinstance(sight.positions, str) else sight.positions.kind
    seen = "sees all that is held" if sight.budget is None else f"{sight.budget} latents in view"
    return f"{where}, {seen}{f', attends to a part ({sight.sparse.kind})' if sight.sparse else ''}"


# -- the table ---------------------------------------------------------------------------------------------------------

def rows(inspection: Inspection) -> list[tuple[str, str, str, str, str]]:
    """Return of each region its name, latents, bytes, and the places relative to the newest latent at which denoising
    calls, and those that write to memory, saw it."""
    calls = inspection.calls
    held = {name: max(len(call.held.get(name, ())) for call in calls) for name in calls[-1].regions}
    most = {name: max(call.regions[name] for call in calls) for name in calls[-1].regions}
    looks = [look for call in calls for look in call.groups]
    own = max(len(look.sigma) for look in looks)
    denoising, writing = ([look for look in looks if look.commit is commit] for commit in (False, True))
    return [(name, str(own if name.endswith("in flight") else held[name]), format_bytes(most[name]),
             _span(denoising, name), _span(writing, name)) for name in most]  # fmt: skip


def _span(looks: Sequence[GroupTrace], region: str) -> str:
    if region.endswith("in flight"):
        places = [index - look.own[-1] for look in looks for index in look.own]
    else:
        places = [place - look.own[-1] for look in looks for stretch in look.spans if stretch.region == region
                  for place in stretch.positions]  # fmt: skip
    return f"{min(places):+d} to {max(places):+d}" if places else "not seen"


def show(inspection: Inspection, path: Path) -> None:
    """Print the table for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    title = f"{inspection.name}, {inspection.seconds:g} s, sizes of {inspection.model}"
    table = Table("region", "latents", "bytes", "places for denoising", "places for writing", title=title,
                  title_justify="left")  # fmt: skip
    for row in rows(inspection):
        table.add_row(*row)
    table.add_section()
    last = inspection.calls[-1]
    table.add_row("together", str(sum(len(held) for held in last.held.values())), format_bytes(last.bytes))
    console.print(table)
    console.print(f"Places are latents before (-) or after (+) the newest of the call.\nwrote {path}")
