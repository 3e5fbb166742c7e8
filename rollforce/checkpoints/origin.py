"""Where weights come from, and how that is known: causal or not, licence, preset. A container's word proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollforce.checkpoints.releases import GENERIC, SKYREELS, Release, find_release
from rollforce.checkpoints.safetensors_folder import STEM, read_json

CARD = "model.yaml"
STREAM_CLASS = "RollforceStream"  # a student's in model_index.json; diffusers' WanPipeline is the bidirectional model
CAUSAL = {STREAM_CLASS, "WanCausalDMDPipeline", "CausalWanModel", "CausalWanTransformer3DModel"}
TEACHERS = {"WanModel", "WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"}
STUDENTS = {".pt", ".pth", ".ckpt"}  # what training code writes
NEUTRAL = {"", "WanTransformer3DModel"}  # teacher and student alike
SAID = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0"}


@dataclass(frozen=True)
class Causality:
    """Whether a transformer streams: True for a causal student, False for a bidirectional model, None where nothing
    tells; `by` what says so. `foreign`: it is of another family, whatever it can do."""

    value: bool | None
    by: str
    foreign: bool = False


@dataclass(frozen=True)
class Origin:
    """Licence and preset of weights, "" where nothing says them, and what says so."""

    release: Release | None = None
    release_by: str = ""
    licence: str = ""
    licence_by: str = ""

    @property
    def stream(self) -> str:
        """The preset that the release was trained for."""
        return self.release.stream if self.release else ""


def model_folder_of(path: Path) -> Path:
    """Return the folder of the model that a file or a part's folder belongs to: its own, or that around the part's."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name in {"transformer", "transformer_2", "vae", "text_encoder"} else folder


def causality_of(source: Path, config: Mapping[str, Any], original: bool = False) -> Causality:
    """Tell whether the transformer in a file streams. `config`: the settings beside it; `original`: it has Wan's own
    names. What counts most comes first: a card, a student's file name, class names, names of folders."""
    source = source.expanduser().absolute()
    folder = model_folder_of(source)
    if (folder / CARD).is_file():
        return Causality(True, f"{CARD} lies beside it")
    release, by = find_release(source)
    if release and release.stream and by.startswith("by its name"):
        return Causality(True, f"{release.name}, {by}")
    own = {} if source.suffix in STUDENTS else config  # a .pt that lies in a base's folder is not what it describes
    classes = {"config.json": str(own.get("_class_name", "")),
               "model_index.json": str(read_json(folder / "model_index.json", {}).get("_class_name", ""))}  # fmt: skip
    for place, name in classes.items():
        if name not in NEUTRAL:
            return _by_class(name, f"{place} says {name}")
    if release is not None:
        known = f"{release.name}, {by}"
        return Causality(None, known, True) if release is SKYREELS else Causality(bool(release.stream), known)
    if original and source.name.startswith(STEM["transformer"]):
        return Causality(False, f"{source.name} is what Wan's own repositories call their weights")
    return Causality(None, "")


def _by_class(name: str, said: str) -> Causality:
    if name in CAUSAL:
        return Causality(True, said)
    return Causality(False, said) if name in TEACHERS else Causality(None, said, foreign=True)


def origin_of(path: Path) -> Origin:
    """Tell release and licence of a file or folder: a card in its own folder or repository counts before names."""
    path = path.expanduser().absolute()
    release, by = find_release(path)
    for folder in dict.fromkeys(_card_folders(path)):
        if licence := _licence_in(folder):
            return Origin(release, by, licence, f"by {folder / 'README.md'}")
    return Origin(release, by, release.licence if release else "", by)


def _card_folders(path: Path) -> list[Path]:
    """The model's own folder, and its repository's in a hub's cache."""
    cached = [parent for parent in path.parents if parent.parent.name == "snapshots" and GENERIC.fullmatch(parent.name)]
    return [model_folder_of(path), *cached]


def _licence_in(folder: Path) -> str:
    """The licence that a hub's card says in its head; "" without one. A folder of ours says it in model.yaml too."""
    import yaml

    card = folder / "README.md"
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n") or "\n---" not in text[4:]:
        return ""
    try:
        head = yaml.safe_load(text[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return ""
    if not isinstance(head, dict) or not isinstance(head.get("license"), str):
        return ""
    told = str(head["license"])
    return str(head.get("license_name") or "") if told == "other" else SAID.get(told, told)
