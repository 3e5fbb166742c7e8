"""Small decoders by name: whose latents they draw. Their shapes do not tell: one file format serves many families.

taew2_1, taehv (HunyuanVideo) and taecvx (CogVideoX) have the same names and shapes, so a file that is called otherwise
is refused rather than guessed. LightX2V's lighttae files want latents as the autoencoder has them, not normalised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rollforce.errors import CheckpointError

WAN, WAN_5B, BUNDLED = "Wan 2.1", "Wan 2.2 TI2V 5B", "rollforce"  # families of latents
CHANNELS = {WAN: 16, WAN_5B: 48}
PAGE = "https://github.com/madebyollin/taehv"
REMEDY = f"For Wan 2.1 take taew2_1.pth ({PAGE}) or lighttaew2_1.safetensors (lightx2v/Autoencoders)."


@dataclass(frozen=True)
class KnownDecoder:
    """A published decoder: the start of its name, whose latents it draws, whether those are `normalised`."""

    start: str
    family: str
    normalised: bool = True
    pruned: bool = False  # the full autoencoder, with fewer channels inside

    @property
    def channels(self) -> int | None:
        """Channels of a latent; None for families that no transformer here has."""
        return CHANNELS.get(self.family)


DECODERS = (
    KnownDecoder("lighttaew2_1", WAN, normalised=False), KnownDecoder("lighttaew2_2", WAN_5B, normalised=False),
    KnownDecoder("lightvaew2_1", WAN, pruned=True), KnownDecoder("lightvaew2_2", WAN_5B, pruned=True),
    KnownDecoder("lighttaehy", "HunyuanVideo 1.5", normalised=False), KnownDecoder("taew2_1", WAN),
    KnownDecoder("taew2_2", WAN_5B), KnownDecoder("taew", WAN), KnownDecoder("taehv1_5", "HunyuanVideo 1.5"),
    KnownDecoder("taehv", "HunyuanVideo"), KnownDecoder("taeh3", "HunyuanVideo 3"), KnownDecoder("taecvx", "CogVideoX"),
    KnownDecoder("taeos", "Open-Sora"), KnownDecoder("taeltx", "LTX-Video"), KnownDecoder("taemochi", "Mochi"),
)  # fmt: skip
SHAPES = {  # `shapes_hash` of published files -> the families that have files of these shapes
    "086c15c9e018e34e3f5be742aa24fdf685b30bccb5c2d2aab998dd7e5b75a67e": (WAN, "HunyuanVideo", "CogVideoX", "Open-Sora"),
    "b61cdbf4520ffcc8f29af5937ade8e69b9b9854290f3388ac14fa22f7a76f324": (WAN_5B,),
    "0fdf1f8d6a4c53856d0241f0ab89f944fb6c971e855e7d78a70c34e3800bf5ac": ("HunyuanVideo 1.5",),
}


def find_decoder(path: str | Path, state: Mapping[str, Tensor] | None = None) -> KnownDecoder:
    """Return what a decoder's file is, by its name and, where they tell, by the shapes of its weights (`state`, which
    may be on the meta device). CheckpointError if neither says it, or they contradict each other."""
    name = Path(path).name.lower().replace("-", "_").replace(".", "_")
    named = next((known for known in DECODERS if name.startswith(known.start)), None)
    shaped = SHAPES.get(shapes_hash(state), ()) if state else ()
    if named is None and len(shaped) == 1:
        return KnownDecoder("", shaped[0])
    if named is None:
        raise CheckpointError(f"--decoder {path}: this name is not known, and the shapes in such a file do not tell "
                              "whose latents it draws (HunyuanVideo's and CogVideoX's are the same as Wan's). "
                              f"{REMEDY}")
    if shaped and named.family not in shaped:
        raise CheckpointError(f"--decoder {path} is called as one for {named.family}, and its weights have the shapes "
                              f"of one for {' or '.join(shaped)}. {REMEDY}")  # fmt: skip
    return named


def shapes_hash(state: Mapping[str, Tensor]) -> str:
    """Return a sha256 over names and shapes: what a file's format is, whatever its numbers."""
    listed = "\n".join(f"{name} {tuple(state[name].shape)}" for name in sorted(state))
    return hashlib.sha256(listed.encode()).hexdigest()
