"""Ctrl-C and SIGTERM from the command's first moment on, long before there is anything to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType

INTERRUPTED = 130


class Interrupt:
    """Ctrl-C and SIGTERM while Python and torch load, also where a shell had them ignored.

    A library may swallow the exception, so it is remembered; a second one ends the process at once."""

    asked = False

    def watch(self) -> None:
        """Take over both signals, until another handler does."""
        for polite in (signal.SIGINT, signal.SIGTERM):
            signal.signal(polite, self._ask)

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(INTERRUPTED)
        self.asked = True
        raise KeyboardInterrupt


INTERRUPT = Interrupt()
