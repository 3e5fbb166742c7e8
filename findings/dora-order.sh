#!/usr/bin/env bash
# Two DoRAs that are on together in peft give another result in another order; two LoRAs do not.
#
# Packages: peft 0.21.2, torch 2.13.0 (Python 3.11).
# Guess: each adapter's change is made from the base weight, so changes add up and order means nothing, as with LoRAs.
# Seen:  each DoRA rescales what the one before it has made of the weight (live and merged alike): ["ink", "oil"] and ["oil", "ink"]
#        are two models, and a DoRA alone is not the part that it has in either.
# It installs into a temporary folder, adapts a single linear layer, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "peft==0.21.2"
cd "$folder"
venv/bin/python - <<'PYTHON'
import copy
import torch
from peft import LoraConfig, get_peft_model


@torch.no_grad()
def apart(dora: bool) -> tuple[float, float]:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0"], use_dora=dora)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config, adapter_name="ink")
    model.add_adapter("oil", config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data += 0.3 * torch.randn_like(weight)
    live, merged = [], []
    for order in (["ink", "oil"], ["oil", "ink"]):
        model.base_model.set_adapter(order)
        live.append(model(torch.eye(8)))
        merged.append(copy.deepcopy(model).merge_and_unload(adapter_names=order)(torch.eye(8)))
    return tuple(float((one - other).abs().max()) for one, other in (live, merged))


for dora in (False, True):
    print("DoRA" if dora else "LoRA", "orders are apart by", apart(dora), "(live, merged)")
assert max(apart(False)) < 1e-5, "two LoRAs depend on their order now"
assert min(apart(True)) > 0.01, "two DoRAs do not depend on their order any more"
PYTHON
echo "as recorded"
