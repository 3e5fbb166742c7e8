"""Print which files of rollforce run while the bundled model makes one chunk; with --write, into architecture.md.

    python docs/chunk_files.py --write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import rollforce

PACKAGE = Path(rollforce.__file__).parent


def chunk_files() -> list[str]:
    """Return the files whose functions run between two chunks of a stream that is under way, by room."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            files.add(path.relative_to(PACKAGE).as_posix())

    with rollforce.load("tiny").session("a red ball rolls left") as session:
        chunks = session.stream()
        for _ in range(6):  # the buffer is full, and memory lets go
            next(chunks)
        sys.setprofile(note)
        try:
            next(chunks)
        finally:
            sys.setprofile(None)
    return sorted(files)


if __name__ == "__main__":
    listing = "\n".join(chunk_files()) + "\n"
    sys.stdout.write(listing)
    if "--write" in sys.argv[1:]:
        page = Path(__file__).with_name("architecture.md")
        page.write_text(re.sub(r"(?ms)(?<=^```text\n).*?(?=^```$)", listing, page.read_text()))
