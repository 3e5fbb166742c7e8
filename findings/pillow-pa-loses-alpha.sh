#!/usr/bin/env bash
# Pillow converts grey with alpha (LA) into palette with alpha (PA) by making all of it opaque, without a word.
#
# Packages: pillow 13.0.0 (Python 3.11).
# Guess: both modes have alpha, so convert("PA") keeps it, as it does from RGBA.
# Seen:  from RGBA the alpha stays; from LA every pixel is 255.
# It installs into a temporary folder, converts pictures that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pillow==13.0.0"
cd "$folder"
venv/bin/python - <<'PYTHON'
from PIL import Image

grey = Image.new("LA", (4, 1))
for x, alpha in enumerate((0, 3, 128, 255)):
    grey.putpixel((x, 0), (200, alpha))
kept, lost = ([picture.convert("PA").getpixel((x, 0))[1] for x in range(4)] for picture in (grey.convert("RGBA"), grey))
print("from RGBA", kept, "| from LA", lost)
assert kept == [0, 3, 128, 255], "RGBA loses it too now"
assert lost == [255] * 4, "LA keeps it now"
PYTHON
echo "as recorded"
