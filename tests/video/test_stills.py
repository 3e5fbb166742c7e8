"""Photographs and drawings of every mode come out upright, plain, and as they look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from rollforce.errors import ConfigError
from rollforce.video.stills import make_plain, over_black, read_still

TURNS = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2),
         6: np.rot90, 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}  # fmt: skip


def corners() -> np.ndarray:
    """A picture of four colours, so that each way to turn it is another."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, 32:], picture[16:, :32], picture[16:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return picture


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize("kind", ["tif", "jpeg", "webp"])
def test_every_orientation_is_turned_upright(tmp_path: Path, tag: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    lying = Image.fromarray(np.ascontiguousarray(TURNS[tag](corners())))
    lying.save(tmp_path / f"a.{kind}", exif=exif, quality=95)
    upright, done = read_still(tmp_path / f"a.{kind}", "image")
    assert upright.shape == (32, 64, 3) and np.abs(upright.astype(int) - corners()).mean() < 12
    assert done == ([] if kind == "tif" else ["turned upright"])  # Pillow turns those itself


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P"])
def test_transparent_parts_are_black_and_half_of_them_half(mode: str) -> None:
    grey = np.full((4, 4), 200, np.uint8)
    alpha = np.zeros((4, 4), np.uint8)
    alpha[2:] = 255
    alpha[3, 3] = 255 if mode == "P" else 128  # a palette has no halves here
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    if mode == "P":
        picture = Image.fromarray(np.where(alpha > 0, 7, 3).astype(np.uint8), "P")
        picture.putpalette([200] * 768)
        picture.info["transparency"] = 3
    elif mode == "PA":
        picture = Image.merge("PA", [Image.fromarray(grey), Image.fromarray(alpha)])
        picture.putpalette(bytes(n for n in range(256) for _ in range(3)))
    else:
        picture = image.convert("RGBA").convert(mode) if mode != "La" else image.convert("La")
    seen, done = make_plain(picture)
    assert done == ["transparent parts over black"]
    assert seen[0, 0].tolist() == [0, 0, 0] and seen[2, 0].tolist() == [200, 200, 200]
    assert mode == "P" or abs(int(seen[3, 3, 0]) - 100) <= 1


def test_over_black_keeps_what_is_not_transparent() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 4), dtype=np.uint8)
    picture[..., 3] = 255
    assert np.array_equal(over_black(picture)[0], picture[..., :3]) and not over_black(picture)[1]


@pytest.mark.parametrize(("levels", "seen"), [
    (np.array([[0, 257, 32768, 65535]], np.uint16), [0, 1, 128, 255]),
    (np.array([[0, 128, 128 * 257, 65535]], np.int32), [0, 0, 128, 255]),
    (np.array([[0, 0.5, 1, 0.25]], np.float32), [0, 128, 255, 64]),
    (np.array([[0, 127.6, 255, 3]], np.float32), [0, 128, 255, 3]),
    (np.array([[0, 32768, 65535, 514]], np.float32), [0, 128, 255, 2]),
])  # fmt: skip
def test_deep_greys_keep_their_range(tmp_path: Path, levels: np.ndarray, seen: list[int]) -> None:
    Image.fromarray(levels).save(tmp_path / "a.tif")
    assert read_still(tmp_path / "a.tif", "image")[0][0, :, 1].tolist() == seen


@pytest.mark.parametrize("levels", [[-1.0, 2], [0, 1e9], [0, np.nan], [0, np.inf]])
def test_levels_without_a_range_are_refused(tmp_path: Path, levels: list[float]) -> None:
    Image.fromarray(np.array([levels], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=r"a\.tif has levels from .* and says not which is white"):
        read_still(tmp_path / "a.tif", "image")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGB", "RGBX"])
def test_other_modes_are_what_pillow_shows(mode: str) -> None:
    image = Image.fromarray(corners()).convert(mode)
    assert np.array_equal(make_plain(image)[0], np.asarray(image.convert("RGB")))


def swapped_profile() -> bytes:
    """The profile of sRGB, but with red and blue changed places, under another name."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue = content.index(b"rXYZ"), content.index(b"bXYZ")
    swapped = bytearray(content.replace("sRGB".encode("utf-16-be"), "Mine".encode("utf-16-be")))
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(swapped)


def test_colours_of_another_profile_are_brought_to_srgb(tmp_path: Path) -> None:
    picture, plain = Image.new("RGB", (4, 4), (120, 60, 200)), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    for content in (plain.tobytes(), b"x" * 200):
        picture.save(tmp_path / "a.png", icc_profile=content)
        assert read_still(tmp_path / "a.png", "image")[0][0, 0].tolist() == [120, 60, 200]
    picture.save(tmp_path / "a.png", icc_profile=swapped_profile())
    seen, done = read_still(tmp_path / "a.png", "image")
    assert np.abs(seen[0, 0].astype(int) - [200, 60, 120]).max() <= 3
    assert done == ["colours of Mine built-in brought to sRGB"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tif", "bmp"])
def test_a_damaged_picture_is_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / f"a.{kind}")
    content, random = (tmp_path / f"a.{kind}").read_bytes(), np.random.default_rng(1)
    for cut in (0, 3, 12, len(content) // 3):
        (tmp_path / f"a.{kind}").write_bytes(content[:cut])
        with pytest.raises(ConfigError, match=r"image=.* cannot be read as an image"):
            read_still(tmp_path / f"a.{kind}", "image")
    for _ in range(12):  # what still decodes is a picture
        spoilt = bytearray(content)
        at = int(random.integers(0, min(200, len(spoilt))))
        spoilt[at : at + 6] = random.bytes(6)
        (tmp_path / f"a.{kind}").write_bytes(spoilt)
        try:
            assert read_still(tmp_path / f"a.{kind}", "image")[0].dtype == np.uint8
        except ConfigError as error:
            assert "a." in str(error)


def test_what_is_read_is_told_for_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ConfigError, match="HEIC is not read here: save it as JPEG"):
        read_still(tmp_path / "a.heic", "image")
    with pytest.raises(ConfigError, match=r"a\.png does not exist\.$"):
        read_still(tmp_path / "a.png", "image")
    with pytest.raises(ConfigError, match="does not exist.*for a clip use video="):
        read_still(tmp_path / "a.mp4", "image")


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConfigError, match="more pixels than are read"):
        read_still(tmp_path / "a.png", "image")
