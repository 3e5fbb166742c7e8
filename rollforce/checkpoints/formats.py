"""What a file is, by its first bytes; its name counts only where those do not tell."""

from __future__ import annotations

from pathlib import Path

MAGIC = {b"GGUF": "gguf", b"PK\x03\x04": "pickle", b"version https://git-lfs": "lfs", b"\x89PNG": "picture",
         b"GIF8": "picture", b"\xff\xd8\xff": "picture", b"\x1aE\xdf\xa3": "video"}  # fmt: skip
SUFFIXES = {".safetensors": "safetensors", ".json": "json", ".yaml": "yaml", ".yml": "yaml", ".txt": "text"}
PICKLED = {".pt", ".pth", ".bin", ".ckpt"}


def format_of(path: Path) -> str:
    """Return what a file is by its first bytes: safetensors, pickle, gguf, lfs (a pointer), html, json, yaml, picture,
    video, text, empty or "" if nothing tells."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty"
    if known := next((word for magic, word in MAGIC.items() if head.startswith(magic)), ""):
        return known
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "html"
    if head[4:8] == b"ftyp":
        return "video"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "safetensors"
    if path.suffix in PICKLED and head[:1] == b"\x80":
        return "pickle"
    return SUFFIXES.get(path.suffix, "") if path.suffix != ".safetensors" else ""
