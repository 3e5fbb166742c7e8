#!/usr/bin/env bash
# A phone clip read with imageio's pyav plugin comes out lying on its side; the turn is there only as 36 raw bytes.
#
# Packages: imageio 2.38.1, av 18.1.0, numpy 2.4.6 (Python 3.11).
# Guess: the plugin turns pictures as the display matrix of the container says, as players and ffmpeg's command do, or says
#        by how many degrees they are to be turned.
# Seen:  imread gives the stored 48 rows x 64 columns of a clip that is shown upright as 64 x 48; immeta has no angle, and
#        under "DISPLAYMATRIX" nine little-endian 32-bit numbers as bytes, to be read by the caller.
# It installs into a temporary folder, reads a clip that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "imageio==2.38.1" "av==18.1.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct
import av
import imageio.v3 as iio
import numpy as np

with av.open("clip.mp4", "w") as file:
    stream = file.add_stream("mpeg4", rate=12)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for level in range(12):
        file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * level, np.uint8), format="rgb24")))
    file.mux(stream.encode())
content = bytearray(open("clip.mp4", "rb").read())
matrix = content.find(b"tkhd") + 4 + 4 + 20 + 16  # behind version, times, ids and layers: a quarter turn, as phones write it
content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
open("clip.mp4", "wb").write(content)

shape, about = iio.imread("clip.mp4", plugin="pyav").shape, iio.immeta("clip.mp4", plugin="pyav", index=0)
angles, matrix = [key for key in about if "rot" in key.lower()], about.get("DISPLAYMATRIX")
print("imread", shape, "| keys of an angle", angles, "| DISPLAYMATRIX", type(matrix).__name__, len(matrix or b""))
assert shape == (12, 48, 64, 3), "the pictures are turned now"
assert not angles and isinstance(matrix, bytes) and len(matrix) == 36, "the metadata say it in another way now"
PYTHON
echo "as recorded"
