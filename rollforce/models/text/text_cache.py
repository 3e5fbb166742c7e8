"""Text vectors on disk: one safetensors file per prompt, so that a prompt is encoded once in its life.

Files are written beside their place and then renamed: threads and processes may share a folder. A folder that cannot
be written to costs speed, not the stream: the newest vectors are then held in memory.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rollforce.checkpoints.outputs import write_whole
from rollforce.errors import ConfigError

log = logging.getLogger(__name__)
HELD = 64  # prompts held in memory where the disk cannot hold them


@dataclass(frozen=True)
class CachedText:
    """One prompt's vectors `rows_LD` (no padding), its own length in tokens, and where it was cut if that is more."""

    rows_LD: Tensor
    tokens: int
    cut: str = ""


def cache_folder() -> Path:
    """Return where text vectors live by default: $ROLLFORCE_CACHE/text, or ~/.cache/rollforce/text."""
    root = os.environ.get("ROLLFORCE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "rollforce").expanduser() / "text"


class TextCache:
    """`read` and `write` by key; what cannot be read is as if it were not there."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = cache_folder() if folder is None else Path(folder)
        self._held: dict[str, CachedText] = {}
        self._warned = False

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def read(self, key: str) -> CachedText | None:
        """Read what was written under `key`; None if nothing was, or nothing that is whole."""
        if key in self._held:
            return self._held[key]
        path = self.path(key)
        try:
            if not path.is_file():
                return None
            with safe_open(path, framework="pt") as file:
                said = file.metadata() or {}
                # A copy: the file may be replaced while a mapping of it is in use.
                return CachedText(file.get_tensor("rows").clone(), int(said["tokens"]), said["cut"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            log.warning("%s cannot be read (%s): the prompt is encoded again", path, error)
            if not isinstance(error, OSError):
                _remove(path)
            return None

    def write(self, key: str, encoded: CachedText) -> None:
        """Keep `encoded`: on disk, or in memory with one warning if the disk refuses."""
        said = {"tokens": str(encoded.tokens), "cut": encoded.cut}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path(key), save({"rows": encoded.rows_LD.cpu().contiguous()}, said))
        except (OSError, ConfigError) as error:
            self._hold(key, encoded, error)

    def _hold(self, key: str, encoded: CachedText, error: Exception) -> None:
        if not self._warned:
            log.warning("text vectors cannot be kept in %s (%s): prompts will be encoded again next time. Set "
                        "ROLLFORCE_CACHE to a folder that can be written to.", self.folder, error)  # fmt: skip
        self._warned = True
        self._held[key] = encoded
        while len(self._held) > HELD:
            self._held.pop(next(iter(self._held)))


def _remove(path: Path) -> None:
    with suppress(OSError):  # it stays behind, which does no harm
        path.unlink(missing_ok=True)
