"""What is written: by one process at a time, whole or not at all, and never through a link.

A lock is the kernel's, on a hidden file beside the output (.ball.lock for ball.mp4), which holds the number of the
process that writes. It ends with that process, however that ends, and the file is removed with it; one that a killed
process left behind binds nobody.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rollforce.errors import ConfigError

log = logging.getLogger(__name__)
_HELD: set[Path] = set()  # by this process
_OTHERS = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a lock says that another process has
_NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system says that has no locks
_STEP_S = 0.05

if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # behind what is written there, which others are to read
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def hold(output: Path, wait_s: float = 0.0, *, folder: bool = False) -> Iterator[None]:
    """Be the one process that writes `output` and what lies beside it under its stem (of a `folder`, under its whole
    name); what it is to be made in must be there.

    ConfigError with the number of the process that does it already, if it has not ended after `wait_s` seconds; OSError
    if the folder cannot be written. This process may hold the same again inside."""
    path = output.parent.resolve() / f".{output.name if folder else output.stem}.lock"
    if path in _HELD:
        yield
        return
    file = _acquire(path, output, time.monotonic() + wait_s)
    _HELD.add(path)
    try:
        yield
    finally:
        _HELD.discard(path)
        _release(path, file)


def _acquire(path: Path, output: Path, until: float) -> int:
    """Return the open file that is locked. One that its holder removed meanwhile is nobody's: another is made."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in _OTHERS:
                return _go_without(path, file, error)
            holder = _read_holder(file)
            os.close(file)
            if time.monotonic() >= until:
                raise ConfigError(f"{output} is being written by {holder}: wait until it has ended, stop it, or choose "
                                  "another name.") from None  # fmt: skip
            time.sleep(_STEP_S)
            continue
        if _is_at(file, path):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())
            return file
        os.close(file)


def _go_without(path: Path, file: int, error: OSError) -> int:
    if error.errno not in _NONE:
        os.close(file)
        raise error
    log.warning("%s cannot be locked (%s): see to it that no other process writes there", path.parent, error.strerror)
    return file


def _release(path: Path, file: int) -> None:
    with suppress(OSError):
        if sys.platform != "win32" and _is_at(file, path):  # Windows removes no open file
            path.unlink()
    os.close(file)
    if sys.platform == "win32":
        with suppress(OSError):
            path.unlink()


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(file: int) -> str:
    """Return who holds a lock, in words; it may not have written its number yet."""
    for _ in range(20):
        os.lseek(file, 0, os.SEEK_SET)
        number, _, host = os.read(file, 300).decode(errors="replace").strip().partition(" ")
        if number:
            return f"process {number}" + ("" if host == socket.gethostname() else f" on {host}")
        time.sleep(_STEP_S)
    return "another process"


def check_plain(path: Path) -> None:
    """Raise ConfigError for the name of a link, a device, a pipe or a socket: none is followed, none is replaced."""
    try:
        mode = path.lstat().st_mode
    except OSError:  # it is not there, or cannot be: others say so
        return
    if stat.S_ISLNK(mode):
        raise ConfigError(f"{path} is a symbolic link (to {os.readlink(path)}), and outputs are not written through "
                          "links: name the file itself, or another one.")  # fmt: skip
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(f"{path} is a device, a pipe or a socket, and outputs are plain files: choose another name.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; at the end it takes its place, so that a file is there whole or not at
    all. After an error nothing has changed. ConfigError for links and devices."""
    check_plain(path)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file by `replacing` it; text is UTF-8."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
