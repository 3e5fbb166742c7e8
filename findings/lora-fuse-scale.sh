#!/usr/bin/env bash
# fuse_lora(lora_scale=0.5) and unfuse_lora() of diffusers leave the LoRA on at half its strength; again, at a quarter.
#
# Packages: diffusers 0.42.1, peft 0.21.2, transformers 5.24.0, torch 2.13.0 (Python 3.11).
# Guess: unfusing gives back the model as it was before fusing: the LoRA live, at the scale it had.
# Seen:  lora_scale is multiplied into the live adapter and stays there: after fuse (0.5) and unfuse the model answers as
#        with set_adapters("ink", 0.5), and the next fuse_lora(lora_scale=0.5) merges a quarter.
# It installs into a temporary folder, adapts a transformer that it makes itself, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "diffusers==0.42.1" "peft==0.21.2" "transformers==5.24.0"
cd "$folder"
venv/bin/python - <<'PYTHON' 2> /dev/null
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

torch.manual_seed(0)
model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=32, text_dim=8,
                              freq_dim=16, in_channels=16, out_channels=16).eval()  # fmt: skip
model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "ffn.net.2"]), "ink")
for name, weight in model.named_parameters():
    if "lora_" in name:
        weight.data += 0.2 * torch.randn_like(weight)
given = {"hidden_states": torch.randn(1, 16, 2, 4, 4), "timestep": torch.tensor([500]),
         "encoder_hidden_states": torch.randn(1, 5, 8)}  # fmt: skip


@torch.no_grad()
def answer(scale: float | None = None) -> torch.Tensor:
    if scale is not None:
        model.set_adapters("ink", scale)
    return model(**given, return_dict=False)[0]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


quarter, half, whole = (answer(scale) for scale in (0.25, 0.5, 1.0))
model.fuse_lora(lora_scale=0.5)
model.unfuse_lora()
after = answer()
model.fuse_lora(lora_scale=0.5)
again = answer()
print("after fuse and unfuse, from scale 1.0:", apart(after, whole), "from 0.5:", apart(after, half))
print("fused at 0.5 a second time, from scale 0.5:", apart(again, half), "from 0.25:", apart(again, quarter))
assert apart(after, half) < 1e-5 < 1e-3 < apart(after, whole), "the scale comes back now"
assert apart(again, quarter) < 1e-5 < 1e-3 < apart(again, half), "a second fusing is at the scale that was asked for now"
PYTHON
echo "as recorded"
