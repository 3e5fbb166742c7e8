#!/bin/bash
# The tests of what meets other people's software (formats, codecs, models, commands) on the lowest versions that
# pyproject.toml allows and on the newest there are. By hand, never by CI: two environments, gigabytes, half an hour.
#   tests/versions.sh [lowest|newest ...]      TORCH=torch==2.13.0 names the build of PyTorch, which both share
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 ROLLFORCE_CACHE=$work/cache

requirements() {  # every floor of pyproject.toml, as a pin for `lowest`; without torch
    python3 - "$1" <<'PY'
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = [line for name in ("wan", "quant", "dev") for line in project["optional-dependencies"][name]]
lines = [line for line in project["dependencies"] + extras if not line.startswith(("torch>", "ruff", "mypy"))]
print("\n".join(line.replace(">=", "==") if sys.argv[1] == "lowest" else line for line in lines))
PY
}

for which in "${@:-lowest newest}"; do for versions in $which; do
    echo "== $versions"
    python3 -m venv "$work/$versions"
    python=$work/$versions/bin/python
    "$python" -m pip install -q "${TORCH:-torch==2.13.0}"
    requirements "$versions" > "$work/requirements.txt"
    "$python" -m pip install -q --upgrade -r "$work/requirements.txt" peft gguf
    "$python" -m pip install -q --no-deps -e .
    "$python" -m pip list 2>/dev/null | grep -iE '^(torch|torchao|av|pillow|imageio|numpy|diffusers|transformers|peft|gguf|safetensors|typer) '
    "$python" -m pytest -q -n logical -p no:cacheprovider tests/checkpoints tests/video tests/models tests/cli \
        tests/streaming/test_wan_stream.py tests/test_config.py
done; done
