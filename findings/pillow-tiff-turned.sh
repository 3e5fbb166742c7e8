#!/usr/bin/env bash
# Pillow turns TIFF pictures upright by itself as they are loaded, but no JPEG, PNG or WebP; until then the tag is still there.
#
# Packages: pillow 13.0.0 (Python 3.11).
# Guess: an orientation tag is data like others: whoever opens a picture reads it and turns the pixels, with every format alike.
# Seen:  a TIFF has its turned size as soon as it is opened, while getexif() still says 6; load() turns the pixels and takes the tag
#        away. Who reads the tag first and turns afterwards, as is right for JPEG, turns a TIFF twice.
# It installs into a temporary folder, opens pictures that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "pillow==13.0.0"
cd "$folder"
venv/bin/python - <<'PYTHON'
from PIL import Image

exif = Image.Exif()
exif[0x0112] = 6
found = {}
for kind in ("jpg", "png", "webp", "tif"):
    Image.new("RGB", (64, 32)).save(f"a.{kind}", exif=exif)
    image = Image.open(f"a.{kind}")
    opened = image.size, image.getexif().get(0x0112)
    image.load()
    found[kind] = [opened, (image.size, image.getexif().get(0x0112))]
    print(kind, "opened", *opened, "| loaded", *found[kind][1])
assert found["tif"] == [((32, 64), 6), ((32, 64), None)], "TIFF is another now"
assert all(found[kind] == [((64, 32), 6)] * 2 for kind in ("jpg", "png", "webp")), "the others are turned now"
PYTHON
echo "as recorded"
