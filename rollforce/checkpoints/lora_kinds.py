"""Kinds of adapter, known by the names of their tensors: what is a LoRA's, and what is refused by its own name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rollforce.errors import CheckpointError

OURS = re.compile(r"\.(?:lora[._](?:A|B|down|up)|dora_scale|lora_magnitude_vector|diff|diff_b|diff_m|w_norm|b_norm)\b")
"""Low-rank pairs, their magnitudes, and whole differences: what is read."""

OTHERS = {
    "LoHa": r"\.hada_[wt][12]",
    "LoKr": r"\.lokr_[wt][12]",
    "OFT": r"\.oft_",
    "BOFT": r"\.boft_",
    "(IA)3": r"\.(?:ia3_l|on_input)\b",
    "GLoRA": r"^(?:lora_unet_|lycoris_).*\.[ab][12]\.weight$",
    "LoCon with a Tucker core (lora_mid)": r"\.lora_mid\b",
    "VeRA": r"\.vera_",
    "VB-LoRA": r"\.vblora_",
    "RandLoRA": r"\.randlora_",
    "FourierFT": r"\.fourierft_",
    "WaveFT": r"\.waveft_",
    "HRA": r"\.hra_",
    "Bone": r"\.bone_",
    "MiSS": r"\.miss_",
    "SHiRA": r"\.shira_",
    "C3A": r"\.c3a_",
    "RoAd": r"\.road_",
    "DeLoRA": r"\.delora_",
    "LN tuning": r"\.ln_tuning_",
    "LoRA of embeddings": r"\.lora_embedding_",
    "ComfyUI patch that sets whole weights (set_weight)": r"\.set_weight\b",
}
"""Names of adapters whose change is not a product of two matrices or a difference, and how their tensors are called."""

REMEDY = "Merge it into its model with the tool that trained it, and convert the merged weights"
_BASE_CHANGED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # these inits move weights of the base out of the way
_SETTINGS = ("use_qalora", "use_bdlora", "alora_invocation_tokens", "layer_replication", "fan_in_fan_out",
             "arrow_config", "kasa_config", "monteclora_config", "velora_config")  # fmt: skip


def is_adapter(names: Iterable[str]) -> bool:
    """Whether any of these names is one of a LoRA's or of another adapter's tensors."""
    return any(OURS.search(name) or kind_of(name) for name in names)


def kind_of(name: str) -> str | None:
    """Return what people call the adapter that has a tensor of this name; None for a LoRA's and for any other."""
    return next((kind for kind, pattern in OTHERS.items() if re.search(pattern, name)), None)


def refuse_others(names: Iterable[str], file: str) -> None:
    """Raise CheckpointError, with the kind's own name, if any of these names is of an adapter that is no LoRA."""
    for name in names:
        if kind := kind_of(name):
            raise CheckpointError(f"{file} is a {kind} (it holds {name}); read are LoRA and DoRA pairs and differences "
                                  f"(.diff, .diff_b, .diff_m). {REMEDY}.")  # fmt: skip


def refuse_settings(settings: Mapping[str, Any], file: str) -> None:
    """Raise CheckpointError if an adapter's settings, as peft writes them, say that its change is another than
    alpha / rank * B @ A on the weights of the base model as they are published."""
    kind = str(settings.get("peft_type", "LORA"))
    if kind != "LORA":
        raise CheckpointError(f"{file} is a {kind} adapter, as its peft_type says; LORA is read. {REMEDY}.")
    if init := next((word for word in _BASE_CHANGED if str(settings.get("init_lora_weights")).startswith(word)), None):
        raise CheckpointError(f"{file} began with init_lora_weights={init!r}, which also changes the base model's "
                              "weights. Convert it to a plain LoRA with peft (save_pretrained with "
                              "path_initial_model_for_weight_conversion).")  # fmt: skip
    if set_ := next((word for word in _SETTINGS if settings.get(word)), None):
        raise CheckpointError(f"{file}: {set_} is set; its change is not alpha / rank * B @ A alone. {REMEDY}.")
