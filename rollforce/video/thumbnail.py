"""A still that stands for a video: the frame in its middle, as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rollforce.errors import ConfigError
from rollforce.video.frame_folder import frame_paths
from rollforce.video.outputs import beside, is_folder

if TYPE_CHECKING:
    from PIL.Image import Image


def thumbnail_path(video: Path) -> Path:
    """Return where the still of a video lies."""
    return beside(video, ".jpg")


def write_thumbnail(video: Path, place: Path | None = None) -> Path:
    """Write the still of a finished video, whole or not at all, to `place`, else beside it; return where. ConfigError
    if it has no frames."""
    place = place or thumbnail_path(video)
    fresh = place.with_name(f"{place.name}.part")
    _middle(video).convert("RGB").save(fresh, format="JPEG", quality=92)
    fresh.replace(place)
    return place


def _middle(video: Path) -> Image:
    from PIL import Image

    if is_folder(video):
        frames = frame_paths(video)
        return Image.open(frames[len(frames) // 2])
    import av
    from av.video.reformatter import VideoReformatter

    from rollforce.video.containers import to_rgb

    with av.open(str(video)) as container:
        stream, half = container.streams.video[0], (container.duration or 0) / av.time_base / 2
        if half > 2 and video.suffix.lower() != ".gif":  # which cannot be entered in its middle
            container.seek(round(half * av.time_base), backward=True)
        last = None
        for frame in container.decode(stream):
            if last is not None and frame.time is not None and frame.time > half + 1e-3:
                break
            last = frame
        if last is None:
            raise ConfigError(f"{video} has no frames, so there is no still of it.")
        return Image.fromarray(to_rgb(last, (last.width, last.height), "rgb24", VideoReformatter()))
