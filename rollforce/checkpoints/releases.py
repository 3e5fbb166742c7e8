"""What is known of the released models by their names: licence, page, and the stream preset they were trained for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

ACADEMIC = "academic use only (no commercial or production use)"
NON_COMMERCIAL = "CC-BY-NC-SA-4.0"


@dataclass(frozen=True)
class Release:
    """A published model. `words`: what its files, folders and repositories are called, without - _ . and spaces."""

    name: str
    licence: str
    stream: str  # preset in configs/stream; "" for a model that does not stream
    page: str
    words: tuple[str, ...]

    @property
    def free(self) -> bool:
        """Whether its licence lets anyone use it for anything."""
        return self.licence == "Apache-2.0"


WAN = Release("Wan 2.1", "Apache-2.0", "", "https://github.com/Wan-Video/Wan2.1", ("wan21t2v", "wan21i2v"))
RELEASES = (
    Release("Rolling Forcing", ACADEMIC, "rolling_forcing", "https://github.com/TencentARC/RollingForcing",
            ("rollingforcing",)),
    Release("CausVid", NON_COMMERCIAL, "causvid", "https://github.com/tianweiy/CausVid",
            ("causvid", "autoregressivecheckpoint")),
    Release("Causal Forcing", "Apache-2.0", "causal_forcing", "https://github.com/thu-ml/Causal-Forcing",
            ("causalforcing",)),
    Release("Reward Forcing", "Apache-2.0", "reward_forcing", "https://github.com/JaydenLyh/Reward-Forcing",
            ("rewardforcing",)),
    Release("LongLive", "Apache-2.0", "longlive", "https://github.com/NVlabs/LongLive", ("longlive",)),
    Release("Self Forcing", "Apache-2.0", "self_forcing", "https://github.com/guandeh17/Self-Forcing",
            ("selfforcing",)),
    WAN,
)  # fmt: skip


def release_of(name: str | PurePath) -> Release | None:
    """Return the release whose name a path bears, in its last part or the four before (a hub's cache: repository)."""
    for part in reversed(PurePath(name).parts[-5:]):
        plain = re.sub(r"[-_. ]", "", part.lower())
        for release in RELEASES:
            if any(word in plain for word in release.words):
                return release
    return None
