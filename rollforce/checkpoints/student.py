"""What must be true of a student's weights and the base they are put beside, before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rollforce.checkpoints.base_model import ModelPart
from rollforce.checkpoints.obstacles import EXPERTS, check, of_transformer
from rollforce.checkpoints.parts import ModelParts, experts_of, transformer_part
from rollforce.checkpoints.read import Checkpoint, teacher_refusal
from rollforce.errors import CheckpointError


def check_expert(file: Path) -> None:
    """CheckpointError for one of two transformers that are a model together."""
    if experts_of(file) > 1:
        raise CheckpointError(f"{file} is one expert of two. {EXPERTS}")


def check_student(checkpoint: Checkpoint, told: bool) -> None:
    """CheckpointError for what is known not to be a student, unless it was `told` what it is."""
    known = checkpoint.known
    if told or not (known.foreign or known.value is False):
        return
    said = (f"{checkpoint.name!r} is of another family ({known.by}), and nothing says that it streams." if known.foreign
            else teacher_refusal(checkpoint.name, known.by))  # fmt: skip
    raise CheckpointError(f"{said} --teacher converts it all the same; if it is a causal student, say what it was "
                          "trained for: --stream self_forcing, for one.")  # fmt: skip


def check_together(checkpoint: Checkpoint, config: Mapping[str, Any], found: tuple[ModelPart, ...],
                       teacher: bool) -> None:  # fmt: skip
    """CheckpointError unless the student and the parts of its base are one model, a student's one that can stream."""
    parts = {part.name: part for part in found}
    transformer = transformer_part(checkpoint.path, checkpoint.state, config)
    if not teacher and (reasons := tuple(of_transformer(transformer))):
        raise CheckpointError(f"{checkpoint.name!r} cannot stream. {' '.join(reasons)}")
    autoencoder, text = parts["vae"].facts(), parts["text_encoder"].facts()
    check(ModelParts(checkpoint.name, transformer, autoencoder, text, parts["tokenizer"].has_words()), teacher)
