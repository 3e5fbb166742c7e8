"""Why the parts of a model cannot stream together: one list of all reasons, each a sentence with its remedy.

Loading, planning, converting and naming files ask this one place, before a byte is written or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from rollforce.checkpoints.decoders import BUNDLED, REMEDY, WAN, WAN_5B
from rollforce.checkpoints.origin import CAUSAL, TEACHERS
from rollforce.checkpoints.parts import ModelParts, Part
from rollforce.errors import CheckpointError

HERE = {"WanTransformer3DModel", *CAUSAL, *TEACHERS, ""}  # classes of transformers that are built here
BASE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def obstacles(model: ModelParts) -> tuple[str, ...]:
    """Return every reason why these parts cannot stream together, each a sentence with its remedy."""
    transformer, autoencoder = model.transformer, model.autoencoder
    return (*contradictions(model), *(of_transformer(transformer) if transformer else ()),
            *(_of_autoencoder(autoencoder) if autoencoder else ()))  # fmt: skip


def contradictions(model: ModelParts) -> tuple[str, ...]:
    """Return why these parts are no whole model, a teacher's or a student's: what is missing, broken, packed, or of
    different models."""
    parts = (model.transformer, model.autoencoder, model.text, model.decoder)
    faults = [fault for part in parts if part for fault in part.faults]
    pair = [EXPERTS] if model.experts > 1 else []
    return (*_missing(model), *faults, *pair, *_packed(model), *_together(model))


def check(model: ModelParts, teacher: bool = False) -> None:
    """CheckpointError with all obstacles, if there are any; for a `teacher`, which need not stream, contradictions."""
    if found := contradictions(model) if teacher else obstacles(model):
        raise CheckpointError(f"{model.name} cannot {'be used' if teacher else 'stream'}. {' '.join(found)}")


def _missing(model: ModelParts) -> Iterator[str]:
    parts = {"transformer": model.transformer, "autoencoder": model.autoencoder, "text encoder": model.text,
             "tokenizer": model.tokenizer or None}  # fmt: skip
    if missing := [name for name, part in parts.items() if part is None]:
        again = ("make it again, or copy what is missing from its base into it" if model.made_here else
                 "take a whole model folder, or make one of a student and a base: rollforce convert")
        yield f"It has no {', no '.join(missing)}: {again}."


def _packed(model: ModelParts) -> Iterator[str]:
    parts = {"transformer": model.transformer, "autoencoder": model.autoencoder, "text encoder": model.text}
    for what, part in parts.items():
        if part and part.quantised:
            yield quantised_refusal(what, part)


EXPERTS = ("It takes two transformers, as Wan 2.2 A14B does: one for high noise and one for low. Streams here run "
           f"one, and half of such a model makes noise. Take a student of Wan 2.1 ({BASE} is its base).")  # fmt: skip


def of_transformer(part: Part) -> Iterator[str]:
    """Yield why a transformer cannot stream, whatever stands beside it."""
    if part.class_name not in HERE:
        yield (f"Its transformer is a {part.class_name}, which has weights or inputs that a WanTransformer3DModel "
               "lacks. Take a text-to-video student of Wan 2.1.")  # fmt: skip
    if part.image:
        yield image_refusal("Its transformer")
    elif part.inputs != part.channels:
        yield (f"Its transformer reads {part.inputs} channels and makes {part.channels}: it wants a picture or another "
               "condition beside the noise, which streams do not give. Take a text-to-video model.")  # fmt: skip
    if part.family == WAN_5B:
        yield (f"Its latents have {part.channels} channels, as those of Wan 2.2 TI2V 5B, whose autoencoder does not "
               "stream here. Take a student of Wan 2.1.")  # fmt: skip


def image_refusal(name: str) -> str:
    """Return what to say of an image-to-video transformer, whose tokens of an image no stream here gives."""
    return (f"{name} is an image-to-video model: its transformer also reads the tokens of an image, and streams here "
            "give it none yet. Take a text-to-video model; --image lets it go on from a picture.")  # fmt: skip


def quantised_refusal(what: str, part: Part) -> str:
    """Return what to say of packed weights in a model folder."""
    return (f"The weights of its {what} are quantised ({part.quantised}), and are loaded only if they are plain. Take "
            f"the release in bfloat16{'; --quantize packs it while loading' if what == 'transformer' else ''}.")


def _of_autoencoder(part: Part) -> Iterator[str]:
    if part.family == WAN_5B:
        yield (f"{part.path} is the autoencoder of Wan 2.2 TI2V 5B, which works in patches and does not stream here. "
               "Take the `vae` folder of a Wan 2.1 model.")  # fmt: skip
    elif part.family not in (WAN, BUNDLED):
        yield (f"{part.path} is an autoencoder of {part.family}; streams of Wan need AutoencoderKLWan. Take the `vae` "
               "folder of a Wan 2.1 model.")  # fmt: skip


def _together(model: ModelParts) -> Iterator[str]:
    """Where parts are of different models."""
    transformer, autoencoder, text = model.transformer, model.autoencoder, model.text
    if transformer and autoencoder and transformer.channels != autoencoder.channels:
        yield (f"Its transformer makes latents of {transformer.channels} channels, and {autoencoder.path} reads "
               f"{autoencoder.channels}: they are not of one model. Take the autoencoder that it was trained with.")
    if text and text.family not in ("UMT5", BUNDLED):
        yield (f"{text.path} is a text encoder of the kind {text.family or 'unknown'!r} "
               f"({text.class_name or 'no class'}); "
               "Wan reads text with 'umt5'. Take the `text_encoder` and `tokenizer` folders of a Wan 2.1 model.")
    elif transformer and text and transformer.text_width != text.text_width:
        yield (f"Its transformer reads text vectors of {transformer.text_width} numbers, and {text.path} makes "
               f"{text.text_width}: they are not of one model. Take the text encoder that it was trained with.")
    if autoencoder and model.decoder and model.decoder.family != autoencoder.family:
        yield wrong_decoder(model.decoder, autoencoder.family)


def wrong_decoder(decoder: Part, family: str) -> str:
    """Return what to say of a decoder for the latents of another family."""
    return (f"--decoder {decoder.path} draws the latents of {decoder.family}, and this model makes those of {family}: "
            f"the pictures would be wrong. {REMEDY}")  # fmt: skip
