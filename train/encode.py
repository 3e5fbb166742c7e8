"""Make training data of your own videos: cut, scale and encode them once, with their captions, as a latent folder.

    python train/encode.py videos --out data/clips --model weights/wan-1.3b
    python train/encode.py videos --out data/clips --size 832x480 --size 480x832 --size 624x624 --latents 21

A caption is a .txt beside its video, or stands in one .jsonl or .csv with file names and captions. Videos may have any
length, size and frame rate: frames are taken by their time stamps, long videos give several clips. Stopped at any
moment, the same command goes on. What was skipped is counted at the end, with reasons, and listed in OUT/videos.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from rollforce.checkpoints.catalog import CARD, Card, bundled
from rollforce.checkpoints.hub import fetch, is_repository
from rollforce.checkpoints.outputs import hold
from rollforce.config import build, resource
from rollforce.errors import ConfigError, RollforceError
from rollforce.models.autoencoder.interface import Autoencoder
from rollforce.models.autoencoder.tiny import TinyAutoencoder
from rollforce.models.autoencoder.wan import WanAutoencoder
from rollforce.models.text.encoder import Text, TextEncoder
from rollforce.models.text.umt5 import WanText, sample
from rollforce.training.encode import JOURNAL, CaptionedVideo, EncodedVideo, EncodeSettings, FolderEncoder
from rollforce.video.size import parse_size
from rollforce.video.values import check_arguments, make_folder

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif",
          ".webp", ".apng")  # fmt: skip
TABLES = (".jsonl", ".csv")
FILE = ("file_name", "file", "filename", "video", "video_path", "path")  # columns of a table
CAPTION = ("caption", "text", "prompt", "cap")
PARTS = ("text", "autoencoder", "text_encoder", "tokenizer", "vae")  # of a model, as far as it has them
EVERY_S = 10.0  # between two lines where there is no terminal
NAMED = 4  # videos that are named for each reason


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("videos", type=Path, help="a folder, or a .jsonl or .csv table that names files and captions")
    p.add_argument("--out", type=Path, required=True, help="folder for the clips; one that was begun is gone on with")
    p.add_argument("--model", default="tiny", help="whose encoders: a bundled name, a folder, a hub id (default: tiny)")
    p.add_argument("--latents", type=int, default=21, help="length of a clip (default: 21, of Wan 81 frames or 5.1 s)")
    p.add_argument("--size", action="append", metavar="WIDTHxHEIGHT", help="in pixels (default: the model's own); "
                   "given several times, each video takes the one nearest to its own shape")
    p.add_argument("--fit", choices=("crop", "pad", "stretch"), default="crop", help="how a video fills its size")
    p.add_argument("--fps", type=float, help="frames per second (default: the model's own)")
    p.add_argument("--limit", type=int, help="only so many videos")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    args = p.parse_args()
    check_arguments(args, counts=("latents", "limit"))
    make_folder(next(path for path in (args.out, *args.out.parents) if path.exists()), "--out")  # tried, not made
    if not args.videos.exists():
        raise ConfigError(f"{args.videos} does not exist: name a folder of videos, or a table of them.")

    # what there is to do, and with what
    videos = list_videos(args.videos)[: args.limit]
    device = choose_device(args.device)
    folder = find_model(args.model)
    with ExitStack() as held:
        if args.out.is_dir():  # or else when all is checked
            held.enter_context(hold(args.out / JOURNAL))
        encode(args, videos, device, folder, held)


def encode(
    args: argparse.Namespace, videos: list[CaptionedVideo], device: torch.device, folder: Path, held: ExitStack
) -> None:
    card = Card(folder.name, "unknown", 16, (480, 832), "")  # Wan's, where a folder has none
    card = build(Card, folder / CARD) if (folder / CARD).is_file() else card
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    text, autoencoder = load_text(folder, device, dtype), load_autoencoder(folder, device, dtype)
    sizes = tuple(parse_size(size) for size in args.size or ()) or (card.size,)
    settings = EncodeSettings(card.fps if args.fps is None else args.fps, sizes, args.latents, args.fit)
    encoder = FolderEncoder(videos, args.out, autoencoder, text, settings, f"{fingerprint_of(folder)} {dtype}")
    make_folder(args.out, "--out")
    held.enter_context(hold(args.out / JOURNAL))

    # captions, then videos
    console = Console(highlight=False, soft_wrap=True)
    console.print(plan_of(encoder, len(videos)), markup=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        if isinstance(text, WanText):  # all captions at once, so that its 11 GB need not stay
            for video in bar.track(encoder.todo, description="captions"):
                encode_caption(text, video.caption)
            encode_caption(text, "")
            text.release()
        task, said = bar.add_task("videos", total=len(encoder.todo)), time.monotonic()
        before = len(encoder.done)
        try:
            for state in encoder.run():
                done, now = len(encoder.done) - before, f"{state.name}: {state.clips} clips"
                bar.update(task, completed=done, description=escape(now))
                if not console.is_terminal and time.monotonic() - said > EVERY_S:
                    said = time.monotonic()
                    console.print(f"{done} of {len(encoder.todo)} videos; {now}", markup=False)
        finally:
            for line in summary_of(encoder):
                console.print(line, markup=False)


def list_videos(source: Path) -> list[CaptionedVideo]:
    """The videos of a folder and of the folders in it, or those that a table names. ConfigError if there is none.

    If a folder holds a table, it gives the captions; a .txt beside a video gives those that it lacks. A folder of
    images with such a .txt beside it is a video."""
    folder = source if source.is_dir() else source.parent
    tables = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES) if source.is_dir() else [source]
    if len(tables) > 1:
        raise ConfigError(f"{source} holds several tables: give one of {', '.join(map(str, tables))} in its place.")
    captions = read_table(tables[0]) if tables else {}
    paths = {folder / name: name for name in captions}
    if source.is_dir():
        paths |= {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))
                  if (path.suffix.lower() in VIDEOS or (path.is_dir() and path.with_suffix(".txt").is_file()))
                  and not path.name.startswith(".")}  # fmt: skip
    if not paths:
        raise ConfigError(f"{source} has no videos: their names end in {', '.join(VIDEOS)}.")
    return [CaptionedVideo(name, path, captions.get(name) or read_caption(path.with_suffix(".txt")))
            for path, name in paths.items()]  # fmt: skip


def read_caption(path: Path) -> str:
    """A caption on one line; "" if there is none."""
    return " ".join(path.read_text("utf-8-sig", "surrogateescape").split()) if path.is_file() else ""


def read_table(path: Path) -> dict[str, str]:
    """File names and their captions. ConfigError if it is no table of them."""
    captions = {}
    for number, row in enumerate(read_rows(path), 1):
        name, caption = (next((row[key] for key in keys if row.get(key)), "") for keys in (FILE, CAPTION))
        caption = caption[0] if isinstance(caption, list) else caption  # some keep several
        if not isinstance(name, str) or not name or not isinstance(caption, str):
            raise ConfigError(f"row {number} of {path} has {', '.join(map(str, row))}: it needs a file name (one of "
                              f"{', '.join(FILE)}) and a caption (one of {', '.join(CAPTION)}).")
        captions[Path(name).as_posix()] = " ".join(caption.split())
    return captions


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv with a head, or the objects of a .jsonl."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                yield from csv.DictReader(file)
            else:
                yield from (dict(json.loads(line)) for line in file if line.strip())
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a folder of videos, or a .jsonl or .csv table of "
                          "them in UTF-8.") from error


def choose_device(name: str) -> torch.device:
    """The device of that name. ConfigError if it cannot be used."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try auto.") from error


def find_model(name: str) -> Path:
    """A bundled model, a folder, or what the hub has under that name. ConfigError if it is none of these."""
    if is_repository(name):
        return fetch(name, (CARD, *(f"{part}/*" for part in PARTS)))
    folder = resource(f"assets/{name}") if name in bundled() else Path(name)
    if not folder.is_dir():
        raise ConfigError(f"There is no model {name!r}: give {', '.join(bundled())}, a folder or a hub id.")
    return folder


def load_text(folder: Path, device: torch.device, dtype: torch.dtype) -> Text:
    """A model's own text encoder."""
    if (folder / "text").is_dir():
        return TextEncoder.load(folder / "text").to(device)
    return WanText.load(folder, device=device, dtype=dtype if device.type == "cuda" else None, keep=True)


def load_autoencoder(folder: Path, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """A model's own autoencoder."""
    if (folder / "autoencoder").is_dir():
        return TinyAutoencoder.load(folder / "autoencoder").to(device)
    return WanAutoencoder.load(folder / "vae", dtype).to(device)


def fingerprint_of(folder: Path) -> str:
    """A short name of the weights, by samples of them."""
    digest = hashlib.sha256()
    for path in sorted(path for part in PARTS for path in (folder / part).rglob("*.safetensors")):
        sample(path, digest)
    return digest.hexdigest()[:16]


def encode_caption(text: WanText, caption: str) -> None:
    """Encode a caption, so that it is in the cache later; one that cannot be encoded is counted when its turn comes."""
    try:
        text.encode([caption])
    except ConfigError:
        return


def plan_of(encoder: FolderEncoder, count: int) -> str:
    """What will be done, in words."""
    s = encoder.settings
    sizes = " or ".join(f"{width}x{height}" for height, width in s.sizes)
    how = {"crop": "its middle cropped", "pad": "padded with black", "stretch": "stretched"}[s.fit]
    which = ", whichever is nearest to its shape" if len(s.sizes) > 1 else ""
    return (f"{count} videos, {count - len(encoder.todo)} of them done before; clips of {s.latents} latents = "
            f"{encoder.frames} frames = {encoder.frames / s.fps:.1f} s at {s.fps:g} fps; every video is scaled to "
            f"{sizes}{which}, {how}")


def summary_of(encoder: FolderEncoder) -> Iterator[str]:
    """What was made, and what was skipped and why."""
    videos = sorted(encoder.done.values(), key=lambda video: video.name)
    sizes = Counter[tuple[int, ...]]()
    for video in videos:
        sizes[video.size] += video.clips
    made = [video for video in videos if video.clips]
    told = ", ".join(f"{count} of {size[1]}x{size[0]}" for size, count in sizes.most_common() if count)
    yield f"{sizes.total()} clips from {len(made)} of {len(videos)} videos in {encoder.folder}: {told or 'nothing'}"
    if left := sum(video.left_s for video in made):
        yield f"left over at their ends, too short for a clip: {left:.1f} s"
    for reason in sorted({video.skipped for video in videos if video.skipped}):
        yield name_some(f"skipped, {reason}", [video for video in videos if video.skipped == reason])
    if broken := [video for video in made if video.trouble]:
        yield name_some("read only in part", broken)


def name_some(what: str, videos: list[EncodedVideo]) -> str:
    """How many videos, and which: the first few, with what was wrong."""
    whys = [video.trouble or (f"{video.left_s:.1f} s" if video.skipped == "too short" else "") for video in videos]
    names = [f"{video.name}: {why}" if why else video.name for video, why in zip(videos[:NAMED], whys, strict=False)]
    return f"{what}: {len(videos)} ({', '.join(names)}{', ...' if len(videos) > NAMED else ''})"


if __name__ == "__main__":
    try:
        main()
    except RollforceError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"cannot be written: {error}. What was made stays; once this is mended, the same command goes on")
    except torch.OutOfMemoryError as error:
        sys.exit(f"the device has not the memory for this size ({error}): give a smaller --size, or --device cpu")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")
