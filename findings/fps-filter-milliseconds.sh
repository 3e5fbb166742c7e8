#!/usr/bin/env bash
# FFmpeg's fps filter with round=up, at the very rate of a clip, repeats pictures where the container counts milliseconds.
#
# Packages: av 18.1.0 with the FFmpeg it brings, numpy 2.4.6 (Python 3.11).
# Guess: 24 pictures at 24 a second, filtered to 24 a second, are the same 24 pictures, whatever the container.
# Seen:  from an .mp4 they are; from an .mkv, whose clock ticks in whole milliseconds (42, 83, 125 ... are early or late by
#        less than one), a rounding of a third of a millisecond moves pictures on by a whole one: some come twice,
#        others not at all.
# It installs into a temporary folder, filters clips that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python - <<'PYTHON'
from fractions import Fraction
import av
import numpy as np


def shown(name: str) -> list[int]:
    with av.open(name, "w") as file:
        stream = file.add_stream("ffv1" if name.endswith("mkv") else "libx264rgb", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0" if name.endswith("mkv") else "rgb24"
        if not name.endswith("mkv"):
            stream.options = {"crf": "0"}
        for level in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * level, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    found = []
    with av.open(name) as file:
        graph = av.filter.Graph()
        source, fps = graph.add_buffer(template=file.streams.video[0]), graph.add("fps", fps="24", round="up")
        sink = graph.add("buffersink")
        source.link_to(fps), fps.link_to(sink), graph.configure()
        for frame in [*file.decode(video=0), None]:
            graph.push(frame)
            while True:
                try:
                    found.append(round(graph.pull().to_ndarray(format="rgb24").mean() / 10))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return found


mp4, mkv = shown("a.mp4"), shown("a.mkv")
print("mp4", mp4)
print("mkv", mkv)
assert mp4[:24] == list(range(24)), "the .mp4 changes now"
assert len(set(mkv[:24])) < 24, "the .mkv does not any more"
PYTHON
echo "as recorded"
