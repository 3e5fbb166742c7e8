#!/usr/bin/env bash
# PyAV 18.1: a frame that has EXIF data gives no side data at all: asking for any of it raises ValueError.
#
# Packages: av 18.1.0 with the FFmpeg 8.1 it brings, numpy 2.4.6, pillow 13.0.0 (Python 3.11).
# Guess: frame.side_data.get("DISPLAYMATRIX") of a photograph, or of an MJPEG clip of a camera, gives the matrix that FFmpeg made of
#        its EXIF orientation, as PyAV 14.1 does; a kind of side data that PyAV does not know is left out.
# Seen:  FFmpeg 8 hands the EXIF block on as side data number 31, which PyAV's Type lacks, and the whole container raises
#        "31 is not a valid Type", also for the matrix that is there; frame.rotation works. JPEG, PNG, WebP and TIFF alike.
# It installs into a temporary folder, reads pictures that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "av==18.1.0" "numpy==2.4.6" "pillow==13.0.0"
cd "$folder"
venv/bin/python - <<'PYTHON'
import av
from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6
for kind in ("jpg", "png", "webp", "tif"):
    Image.new("RGB", (64, 32)).save(f"a.{kind}", exif=exif)
    with av.open(f"a.{kind}") as file:
        frame = next(file.decode(video=0))
    try:
        said = repr(frame.side_data.get("DISPLAYMATRIX"))
    except ValueError as error:
        said = str(error)
    print(kind, "| rotation", frame.rotation, "| side data:", said)
    assert frame.rotation == -90, "it is not turned now"
    assert said == "31 is not a valid Type", "side data can be asked for now"
PYTHON
echo "as recorded"
