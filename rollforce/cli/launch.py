"""Several processes of one command, as torchrun and `accelerate launch` start them: each takes its share."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rollforce.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this one is, and which of those on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def share(self) -> slice:
        """Every `size`-th of what there is to do, from the `rank`-th on."""
        return slice(self.rank, None, self.size)

    def device(self, name: str) -> str:
        """Return the device of this process, where it is not said which of several."""
        import torch

        several = self.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available()
        return f"cuda:{self.local % torch.cuda.device_count()}" if several else name


def read_launch() -> Launch:
    """Return what the launcher says in RANK, WORLD_SIZE and LOCAL_RANK. ConfigError if they cannot be."""
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")}
    if not all(said.values()):
        return Launch()
    try:
        rank, size = int(said["RANK"]), int(said["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK") or rank)
    except ValueError:
        rank, size, local = 0, 0, 0
    if not 0 <= rank < size:
        raise ConfigError(f"RANK={said['RANK']} and WORLD_SIZE={said['WORLD_SIZE']}, as torchrun sets them, must be "
                          "whole numbers, the first below the second. Unset both to run alone.")  # fmt: skip
    return Launch(rank, size, local)
