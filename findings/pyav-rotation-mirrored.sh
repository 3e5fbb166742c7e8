#!/usr/bin/env bash
# PyAV's frame.rotation of a clip that is mirrored left to right says half a turn; turned so, it is upside down.
#
# Packages: av 18.1.0 with the FFmpeg it brings, numpy 2.4.6 (Python 3.11).
# Guess: a clip whose display matrix mirrors it, as front cameras and `ffmpeg -display_hflip` write it, has rotation 0, since nothing is
#        turned, or None.
# Seen:  mirrored left to right it says -180 (180), top to bottom 0: a mirror and a turn cannot be told apart by it, and whoever turns by it
#        shows the first clip upside down. Only the nine numbers of the matrix tell.
# It installs into a temporary folder, reads clips that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct

import av
import numpy as np

with av.open("clip.mp4", "w") as file:
    stream = file.add_stream("mpeg4", rate=12)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for _ in range(3):
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
    file.mux(stream.encode())
content = bytearray(open("clip.mp4", "rb").read())
at = content.find(b"tkhd") + 44
said = {}
for name, (a, b, c, d) in {"left-right": (-1, 0, 0, 1), "top-bottom": (1, 0, 0, -1), "half turn": (-1, 0, 0, -1)}.items():
    content[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    open("mirrored.mp4", "wb").write(content)
    with av.open("mirrored.mp4") as file:
        said[name] = next(file.decode(video=0)).rotation
print(said)
assert abs(said["left-right"]) == 180 == abs(said["half turn"]) and said["top-bottom"] == 0, "it tells mirrors now"
PYTHON
echo "as recorded"
