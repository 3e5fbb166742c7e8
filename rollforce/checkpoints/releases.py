"""What is known of the released models by their names: licence, page, and the stream preset they were trained for."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
SKYREELS = Release("SkyReels V2", "Skywork licence", "", "https://github.com/SkyworkAI/SkyReels-V2", ("skyreels",))
BASES = (  # that no student here was made from
    SKYREELS,
    Release("Wan VACE", "Apache-2.0", "", "https://github.com/ali-vilab/VACE", ("wan21vace", "wanvace", "wan22vace")),
    Release("Wan 2.2 TI2V 5B", "Apache-2.0", "", "https://github.com/Wan-Video/Wan2.2", ("wan22ti2v", "ti2v5b")),
    Release("Wan 2.2 A14B", "Apache-2.0", "", "https://github.com/Wan-Video/Wan2.2",
            ("wan22t2v", "wan22i2v", "t2va14b", "i2va14b")),
)  # fmt: skip
EXPERT = ("highnoise", "lownoise", "a14b")  # words in the names of halves of Wan 2.2 A14B

GENERIC = re.compile(r"diffusion_pytorch_model.*|transformer(_2)?|vae|autoencoder|text_encoder|snapshots|[0-9a-f]{40}|")
"""Names of folders and files that say nothing of what a model is."""


def release_of(name: str | PurePath) -> Release | None:
    """Return the release whose name a path bears: see `find_release`."""
    return find_release(name)[0]


def find_release(name: str | PurePath) -> tuple[Release | None, str]:
    """Return the release that a path is of, and what says so: its own name, that of its folder (of the model, where a
    part's folder lies between), or of its repository in a hub's cache. Folders further up say nothing."""
    for word, place in names_of(name):
        bare = _bare(word)
        for release in (*RELEASES, *BASES):
            if any(known in bare for known in release.words):
                return release, f"by {place} {word}"
    return None, ""


def names_of(path: str | PurePath) -> Iterator[tuple[str, str]]:
    """Yield the names that may tell what a path is, with what they are the names of."""
    path = PurePath(path)
    yield path.name, "its name"
    if telling := [parent.name for parent in path.parents if not GENERIC.fullmatch(parent.name)][:1]:
        yield telling[0], "the name of its folder"
    for part, after in zip(path.parts, path.parts[1:], strict=False):
        if part.startswith("models--") and after == "snapshots":
            yield part.rsplit("--", 1)[-1], "its repository"


def is_expert(path: str | PurePath) -> bool:
    """Whether a path bears the name of one of the two experts of Wan 2.2 A14B."""
    return any(word in _bare(name) for name, _ in names_of(path) for word in EXPERT)


def _bare(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())
