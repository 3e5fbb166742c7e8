"""Finished streams, kept as they come: a file of JSON lines, so that a long evaluation can go on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rollforce.errors import ConfigError
from rollforce.evaluation.report import StreamedVideo


class EvaluationJournal:
    """The streams of one evaluation, on disk if there is a `path`.

    `settings` are what a stream's result depends on; they are the file's first line. With `resume` an older file is
    gone on with: ConfigError if its settings were others. Settings and streams it holds for other runs are kept.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], resume: bool = False) -> None:
        self._path = path
        self.streams: list[StreamedVideo] = []
        known = dict(json.loads(json.dumps(settings)))
        if path is None:
            return
        if resume and path.is_file():
            before, self.streams = _read(path)
            _check(path, before, known)
            known = before | known
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [known, *(asdict(stream) for stream in self.streams)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, stream: StreamedVideo) -> None:
        """Keep one more stream."""
        self.streams.append(stream)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(stream)) + "\n")

    def has(self, run: str, number: int, repeat: int) -> bool:
        """Return whether this stream of this run is finished."""
        return any((s.run, s.number, s.repeat) == (run, number, repeat) for s in self.streams)


def _read(path: Path) -> tuple[dict[str, Any], list[StreamedVideo]]:
    """Return the settings and streams of a file; a last line that was cut off in writing is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    if not lines:
        return {}, []
    return lines[0], [StreamedVideo(**line) for line in lines[1:]]


def _check(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    other = [name for name in now if name in before and before[name] != now[name]]
    if other:
        told = ", ".join(f"{name}: {before[name]} there, {now[name]} now" for name in other)
        raise ConfigError(f"{path} was begun with other settings ({told}). Give the same ones, or leave out --resume "
                          "to begin anew.")
