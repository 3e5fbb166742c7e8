"""The generator embedded in a program: frames arrive one by one, for ever, and are drawn in the terminal.

    python infer/stream.py "a blue star drifts right over the sea at night"
"""

import sys
import time

import numpy as np

import rollforce
from rollforce.errors import call_main
from rollforce.video.values import check_prompt


def draw(frame_HWC: np.ndarray, caption: str) -> None:
    """Draw one picture in a terminal that knows 24-bit colour: each character shows two pixels, one above the other."""
    small = frame_HWC[::2, ::2].tolist()
    lines = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        pairs = zip(upper, lower, strict=True)
        cells = [f"\033[38;2;{r};{g};{b};48;2;{R};{G};{B}m▀" for (r, g, b), (R, G, B) in pairs]
        lines.append("".join(cells) + "\033[0m")
    sys.stdout.write("\033[H" + "\n".join(lines) + f"\n{caption}\033[K\n")
    sys.stdout.flush()


def main() -> None:
    prompt = check_prompt(" ".join(sys.argv[1:]) or "a red ball bounces over green hills")
    model = rollforce.load("tiny")
    prompt = model.complete_prompt(prompt)
    begun = time.perf_counter()
    for number, frame in enumerate(rollforce.stream(prompt, model=model)):
        made = (number + 1) / (time.perf_counter() - begun)
        draw(frame, f"{prompt} · {number / model.fps:.1f} s of video · {made:.0f} frames/s · Ctrl-C ends")
        time.sleep(max(0.0, begun + number / model.fps - time.perf_counter()))  # as fast as the video, no faster


if __name__ == "__main__":
    call_main(main, interrupted="")
