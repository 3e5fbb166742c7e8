"""Positions: where the visible past stands in time. Plain integers in, moves out.

RoPE attention only sees differences, so queries and the newest past keep their stream index for ever, and a policy
only says by how much a region further back is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rollforce.errors import ConfigError

Visible = Mapping[str, Sequence[int]]  # region -> stream indices that a call sees of it, rising
Moves = dict[str, int]  # region -> latents by which its keys are moved in time; absent = 0
Positions = Callable[[Visible, int], Moves]


def absolute(visible: Visible, start: int) -> Moves:
    """Every latent stands at its own index (Self Forcing, LongLive): the distance to a sink grows without bound."""
    return {}


def realigned(visible: Visible, start: int) -> Moves:
    """Regions follow each other without a gap, the last one ending where the call's own latents `start`.

    Rolling Forcing's sink (section 3.3), generalised to any number of regions: positions never leave the range
    seen in training, however long the stream.
    """
    moves: Moves = {}
    end = start
    for region, held in sorted(visible.items(), key=lambda item: max(item[1], default=-1), reverse=True):
        if held:
            moves[region] = end - 1 - held[-1]
            end = held[0] + moves[region]
    return moves


POSITIONS: dict[str, Positions] = {"absolute": absolute, "realigned": realigned}


def positions(name: str) -> Positions:
    """The position policy called `name`; ConfigError lists what exists."""
    if name not in POSITIONS:
        raise ConfigError(f"positions {name!r} are not known. Use one of: {', '.join(POSITIONS)}.")
    return POSITIONS[name]
