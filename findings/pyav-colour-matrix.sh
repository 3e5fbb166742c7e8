#!/usr/bin/env bash
# PyAV before 17 turns every frame to RGB as if it were BT.601, whatever the frame says.
#
# Packages: av 16.1.0 and 17.0.0 with the FFmpeg that each brings, numpy 2.3.5 (Python 3.11).
# Guess: `to_ndarray(format="rgb24")` follows the matrix that a frame is tagged with.
# Seen:  a red of (220, 40, 40) in a clip tagged BT.709, as HD video is, is read as (204, 20, 41) by 16.1.0, which knows
#        the tag (`frame.colorspace` is 1), and as (219, 38, 39) by 17.0.0.
# It installs into a temporary folder, reads a clip that it makes itself, and fails if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 16.1.0 17.0.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install -q "av==$version" numpy==2.3.5
done

"$work/17.0.0/bin/python" - "$work/clip.mp4" <<'PY'
import sys

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), (220, 40, 40), np.uint8), format="rgb24")
with av.open(sys.argv[1], "w") as container:
    stream = container.add_stream("libx264", rate=12, options={"crf": "1"})
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = 1
    converter = VideoReformatter()
    for _ in range(3):
        container.mux(stream.encode(converter.reformat(picture, format="yuv420p", dst_colorspace=Colorspace.ITU709)))
    container.mux(stream.encode())
PY

for version in 16.1.0 17.0.0; do
    "$work/$version/bin/python" - "$work/clip.mp4" <<'PY'
import sys

import av

with av.open(sys.argv[1]) as container:
    frame = next(container.decode(video=0))
    seen = [int(value) for value in frame.to_ndarray(format="rgb24")[32, 32]]
print(f"PyAV {av.__version__}: matrix {frame.colorspace} (1 is BT.709), (220, 40, 40) is read as {tuple(seen)}")
off = max(abs(a - b) for a, b in zip(seen, (220, 40, 40), strict=True))
right = off <= 4 if av.__version__ == "17.0.0" else 10 < off < 30
sys.exit(0 if right else f"PyAV {av.__version__} behaves otherwise now")
PY
done
echo "as recorded"
