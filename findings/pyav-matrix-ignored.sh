#!/usr/bin/env bash
# PyAV 14.1: told that a frame is BT.709, as it is, it makes RGB of it by BT.601; only a second matrix, which RGB has not, helps.
#
# Packages: av 14.1.0 with the FFmpeg 7.1 it brings, numpy 2.4.6 (Python 3.11).
# Guess: frame.to_ndarray(format="rgb24") uses the matrix that the frame says, and src_colorspace sets another.
# Seen:  without a word, and with src_colorspace=ITU709, a BT.709 clip is read by BT.601 (red 220 comes out as 204); with
#        dst_colorspace=ITU601 beside it, of which an RGB picture should know nothing, it is right. PyAV 18.1 is right in all three.
# It installs into a temporary folder, reads a clip that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==14.1.0" "numpy==2.4.6"
cd "$folder"
venv/bin/python - <<'PYTHON'
import av
import numpy as np
from av.video.reformatter import Colorspace

red = np.full((48, 64, 3), (220, 40, 40), np.uint8)
with av.open("clip.mp4", "w") as file:
    stream = file.add_stream("libx264", rate=12, options={"crf": "1"})
    stream.width, stream.height, stream.pix_fmt, stream.codec_context.colorspace = 64, 48, "yuv420p", 1
    frame = av.VideoFrame.from_ndarray(red, format="rgb24")
    file.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
    file.mux(stream.encode())
with av.open("clip.mp4") as file:
    frame = next(file.decode(video=0))
ways = {"as it says": {}, "source": {"src_colorspace": Colorspace.ITU709},
        "source and target": {"src_colorspace": Colorspace.ITU709, "dst_colorspace": Colorspace.ITU601}}
seen = {name: frame.to_ndarray(format="rgb24", **way)[24, 32].tolist() for name, way in ways.items()}
print("the frame says matrix", frame.colorspace, "|", seen)
assert abs(seen["source and target"][0] - 220) < 3, "it is wrong with both now"
assert abs(seen["as it says"][0] - 204) < 3 and abs(seen["source"][0] - 204) < 3, "it is right now"
PYTHON
echo "as recorded"
