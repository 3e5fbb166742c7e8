"""What can go wrong for a user, and how a program says it. Each message says what, why and the remedy.

    RollforceError
    ├── ConfigError (ValueError)     a setting, an override, a prompt or an argument cannot be used
    │   └── ShapeError               a size does not fit the model's geometry
    ├── DoesNotFit (MemoryError)     the device has not the memory for what was asked
    ├── CheckpointError              weights are missing, of another kind, or of another size
    ├── SnapshotError                a saved stream does not belong to this model or version
    ├── SessionClosed                a session was used after it was closed
    └── TrainingError                training cannot go on: numbers that are not finite, a checkpoint of another run
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable


class RollforceError(Exception):
    """Root of every error that rollforce raises for a user's mistake."""


class ConfigError(RollforceError, ValueError):
    """A setting, an override, a prompt or an argument cannot be used."""


class ShapeError(ConfigError):
    """A size does not fit the model's geometry."""


class DoesNotFit(RollforceError, MemoryError):
    """The device has not the memory for what was asked."""


class CheckpointError(RollforceError):
    """Weights are missing, of another kind, or of another size."""


class SnapshotError(RollforceError):
    """A saved stream does not belong to this model or version."""


class SessionClosed(RollforceError):
    """A session was used after it was closed."""


class TrainingError(RollforceError):
    """Training cannot go on: numbers that are not finite, or a checkpoint of another run."""


def stand_in(path: pathlib.Path) -> str:
    """Say what stands where a file's content should be (a Git LFS pointer, a web page, nothing), and how to get it.

    Returns "" for anything else, a file that is not there too: it is asked before "damaged" is said of one."""
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
            empty = not head and file.seek(0, 2) == 0
    except OSError:
        return ""
    if empty:
        return f"{path} is an empty file: fetch it again."
    if head.startswith(b"version https://git-lfs"):
        return (f"{path} is a Git LFS pointer, a small text in place of the file: fetch the file itself with "
                "`git lfs pull` in that folder, or `hf download`.")  # fmt: skip
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return (f"{path} is a web page (HTML), saved under the name of a file: a login or a licence may stand before "
                "the download. Fetch the file itself.")  # fmt: skip
    return ""
# -- how a program says it ---------------------------------------------------------------------------------------------


def call_main(main: Callable[[], object], interrupted: str = "interrupted") -> None:
    """Run a script's main and end the process as a person expects: a mistake of theirs, a file that cannot be written
    or Ctrl-C with one sentence and exit code 1, a reader that has gone (`| head`) without any."""
    spell_out()
    try:
        main()
    except RollforceError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except BrokenPipeError:
        leave_pipe()
    except OSError as error:
        sys.exit(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")


def spell_out() -> None:
    """Let what is printed pass where the terminal has no sign for it: a question mark stands there."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def leave_pipe() -> None:
    """End the process whose reader has gone, as a shell's own programs do: silently, with the code of SIGPIPE."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(141)
