"""Screen: moving pictures in a terminal that knows 24-bit colour, and keys that are read while they move."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TextIO

import numpy as np
from PIL import Image

ENLARGED = 96  # characters that a picture is at most wide: more would be slow to send


def draw_half_blocks(frame_HWC: np.ndarray, columns: int, rows: int) -> list[str]:
    """Return a picture, uint8 [H, W, 3], as lines of half blocks, two pixels to a character, as large as fits."""
    height, width = frame_HWC.shape[:2]
    scale = min(columns / width, 2 * rows / height, ENLARGED / width)
    size = max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2)
    pixels = np.asarray(Image.fromarray(frame_HWC).resize(size, Image.Resampling.BOX)).tolist()
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        line, before = "", ""
        for (r, g, b), (R, G, B) in zip(upper, lower, strict=True):
            colours = f"\033[38;2;{r};{g};{b};48;2;{R};{G};{B}m"
            line, before = line + ("" if colours == before else colours) + "▀", colours
        lines.append(line + "\033[0m")
    return lines


class Screen:
    """The picture; a line of where it stands; what was said last; what is being typed."""

    SAID = 6  # lines

    def __init__(self, out: TextIO, size: Callable[[], tuple[int, int]] = shutil.get_terminal_size) -> None:
        self.out, self.size = out, size
        self.said: list[str] = []
        self.typing = ""

    def say(self, text: str) -> None:
        """Show a text below the pictures from the next one on: the last few lines, and all of a longer text."""
        width = max(20, self.size()[0] - 1)
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, width, subsequent_indent="    ")]
        self.said = [*self.said, *lines][-max(self.SAID, len(lines)) :]

    def show(self, frame_HWC: np.ndarray, status: str) -> None:
        """Draw it all anew."""
        columns, rows = self.size()
        below = [f"\033[7m {status[: columns - 2]} \033[0m"]
        below += [f"\033[2m{line[: columns - 1]}\033[0m" for line in self.said]
        lines = [*draw_half_blocks(frame_HWC, columns, max(1, rows - len(below) - 1)), *below]
        typed = f"> {self.typing[-max(1, columns - 4) :]}"
        self.out.write("\033[H" + "".join(f"{line}\033[K\r\n" for line in lines[: rows - 1]) + f"{typed}\033[J")
        self.out.flush()

    def key(self, character: str) -> str | None:
        """Type a character; return the line if it is Enter. Ctrl-U empties it; Ctrl-D on an empty one: ":quit"."""
        line = self.typing
        if character in ("\r", "\n"):
            self.typing = ""
            return line
        if character == "\x04":
            return None if line else ":quit"
        if character in ("\x7f", "\b", "\x15"):
            self.typing = "" if character == "\x15" else line[:-1]
        elif character.isprintable():
            self.typing += character
        return None

    @contextmanager
    def keyboard(self, heard: Callable[[str], None]) -> Iterator[None]:
        """Within it keys of stdin, a terminal, are typed as they are pressed, and lines go to `heard`, from a thread.
        Afterwards the terminal is as it was. Not on Windows."""
        import termios
        import tty

        def read() -> None:
            while pressed := os.read(sys.stdin.fileno(), 1024).decode(errors="ignore"):
                for character in "" if pressed.startswith("\033") else pressed:  # arrows and the like
                    if (line := self.key(character)) is not None:
                        heard(line)

        before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        Thread(target=read, daemon=True).start()
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it the terminal is this screen's alone; afterwards it shows what it showed before."""
        self.out.write("\033[?1049h\033[2J\033[?25l")
        try:
            yield
        finally:
            self.out.write("\x18\033[?25h\033[?1049l")  # CAN ends what was written half
            self.out.flush()
