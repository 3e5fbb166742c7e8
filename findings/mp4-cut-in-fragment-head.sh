#!/usr/bin/env bash
# A growing fragmented MP4 whose end falls within the head of a fragment cannot be opened by FFmpeg at all, however much is before it.
#
# Packages: av 18.1.0 with the FFmpeg it brings, numpy 2.4.6 (Python 3.11).
# Guess: fragments are there so that a file can be read while it grows: wherever it ends for now, the whole fragments before are read.
# Seen:  that holds for an end within the pictures (mdat) and for most ends within a head (moof), but at some of them, where a box in it
#        has just begun, opening fails with "Invalid data found" or "End of file", though whole fragments are before it. Read up to the
#        last whole box, the same file gives them all.
# It installs into a temporary folder, opens parts of a file that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python - <<'PYTHON'
import re

import av
import numpy as np


def count(content: bytes) -> int:
    open("part.mp4", "wb").write(content)
    try:
        with av.open("part.mp4") as file:
            return sum(1 for packet in file.demux(video=0) if packet.size and not packet.is_corrupt)
    except (av.error.InvalidDataError, av.error.EOFError):
        return -1


with av.open("whole.mp4", "w", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as file:
    stream = file.add_stream("mpeg4", rate=12)
    stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 48, "yuv420p", 1
    for level in range(48):
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * level, np.uint8), format="rgb24")))
    file.mux(stream.encode())
content = open("whole.mp4", "rb").read()
begin = [found.start() - 4 for found in re.finditer(b"moof", content)][5]  # five whole fragments are before it, of a picture each
size = int.from_bytes(content[begin : begin + 4])
found = {length: count(content[: begin + length]) for length in range(0, size + 1, 4)}
print("pictures that are read, by bytes of the head:", found)
assert found[0] == found[size] == 5, "whole fragments are not read now"
assert -1 in found.values(), "it can be opened wherever it ends now"
PYTHON
echo "as recorded"
