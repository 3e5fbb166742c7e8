#!/usr/bin/env bash
# WanPipeline.from_pretrained of a folder whose model_index.json names another pipeline: loaded without a word.
#
# Packages: diffusers 0.42.1, transformers 5.24.0, accelerate 1.15.0, torch 2.13.0 (Python 3.11).
# Guess: a folder that says "_class_name": "RollforceStream" (or "AnimateDiffPipeline", or nothing that exists) is refused,
#        or at least warned of, by a pipeline of another class: DiffusionPipeline.from_pretrained refuses the same folder.
# Seen:  an explicit class never looks at the name; it takes the parts it knows and goes on. What does refuse is a part that
#        is missing from the index and not optional: without a "scheduler" the same folder ends in "expected ['scheduler', ...".
# It installs into a temporary folder, writes a tiny random pipeline, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "diffusers==0.42.1" "transformers==5.24.0" "accelerate==1.15.0"
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON' 2>/dev/null
import json
from pathlib import Path
from diffusers import AutoencoderKLWan, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

base, index = Path("pipeline"), Path("pipeline/model_index.json")
WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=16, text_dim=8, freq_dim=16
                      ).save_pretrained(base / "transformer")
AutoencoderKLWan(base_dim=4).save_pretrained(base / "vae")
FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")
parts = {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"],
         "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}


def tried(kind: type, **content: object) -> str:
    index.write_text(json.dumps({"_diffusers_version": "0.42.1", **content}))
    try:
        return f"loaded, transformer {type(kind.from_pretrained(base, tokenizer=None, text_encoder=None).transformer).__name__}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:90]}"


less = {name: part for name, part in parts.items() if name != "scheduler"}
found = {"DiffusionPipeline, another name": tried(DiffusionPipeline, _class_name="RollforceStream", **parts),
         "WanPipeline, another name": tried(WanPipeline, _class_name="RollforceStream", **parts),
         "WanPipeline, no scheduler": tried(WanPipeline, _class_name="RollforceStream", **less)}
for what, came in found.items():
    print(f"{what}: {came}")
loaded = [what for what, came in found.items() if came.startswith("loaded")]
assert loaded == ["WanPipeline, another name"], loaded
PYTHON
echo "as recorded"
