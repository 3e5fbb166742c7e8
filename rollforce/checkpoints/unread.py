"""Kinds of quantised weights that are not read here, each known by the names of its tensors and called by its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rollforce.errors import CheckpointError

REMEDY = ("Take the release in bfloat16, float16, float8 (fp8_scaled, comfy_quant), int8 or GGUF; `rollforce render "
          "--quantize int8` stores a model in eight bits.")  # fmt: skip

# What people call it, and a name that only its files hold; the first that fits is said.
KINDS = (
    ("bitsandbytes NF4", r"\.quant_state\.bitsandbytes__nf4$"),
    ("bitsandbytes FP4", r"\.quant_state\.bitsandbytes__fp4$"),
    ("bitsandbytes (4 bits)", r"\.(absmax|quant_map|nested_absmax|nested_quant_map)$"),
    ("bitsandbytes LLM.int8", r"\.(SCB|weight_format)$"),
    ("SVDQuant (nunchaku)", r"\.(proj_down|proj_up|smooth_factor(_orig)?|smooth_orig|wscales|wtscale|wcscales)$"),
    ("torchao", r"\._\w+_(qdata|scale|zero_point)$"),
    ("NVFP4", r"\.(weight_scale_2|weight_global_scale|weight_scale_global|weight_alpha)$|quantized_weight_values"),
    ("compressed-tensors", r"\.weight_packed$"),
    ("GPTQ or AWQ", r"\.(qweight|qzeros|g_idx)$"),
    ("float8 in blocks (weight_scale_inv)", r"\.weight_scale_inv$"),
    ("quanto", r"\.weight\.(_data|_scale|_packed)$|\.weight_qtype$"),
    ("ModelOpt", r"\.(weight|input)_quantizer\._\w+$"),
    ("HQQ", r"\.W_q$"),
)  # fmt: skip
PACKAGES = {"torchao": "torchao", "bitsandbytes": "bitsandbytes", "optimum": "quanto", "quanto": "quanto",
            "nunchaku": "SVDQuant (nunchaku)", "hqq": "HQQ", "modelopt": "ModelOpt", "gguf": "GGUF in a pickle"}


def quantisation_of(names: Iterable[str]) -> str:
    """Return what the kind of quantisation is called whose names are among these; "" for none that is known."""
    names = list(names)
    return next((kind for kind, pattern in KINDS if any(re.search(pattern, name) for name in names)), "")


def refuse_quantised(names: Iterable[str], name: str) -> None:
    """Raise CheckpointError, which calls it by its name, if these are names of weights quantised in an unread way."""
    if kind := quantisation_of(names):
        raise CheckpointError(refusal(kind, name))


def refuse_codes(state: Mapping[str, Any], config: Mapping[str, Any], name: str) -> None:
    """Raise CheckpointError if a weight is of whole numbers: codes, whose scales stand nowhere."""
    codes = [key for key, tensor in state.items() if not (tensor.is_floating_point() or tensor.is_complex())]
    if codes:
        told = config.get("quantization_config")
        kind = str(told.get("quant_method", "")) if isinstance(told, dict) else ""
        kind = kind or f"codes without scales ({codes[0]} in {str(state[codes[0]].dtype).removeprefix('torch.')})"
        raise CheckpointError(refusal(kind, name))


def refusal(kind: str, name: str) -> str:
    """Return the words by which weights quantised as `kind` are refused."""
    return f"{name} is quantised: {kind}, which is not read here. {REMEDY}"
