#!/usr/bin/env bash
# Lint, format and types: `bash scripts/check.sh [PYTHON]`, PYTHON being one with the extras cuda, ascend and dev.
# Runs all three before it fails. scripts/test.sh makes the default PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${1:-.venv-test-both/bin/python}"
if [ ! -x "$python" ]; then
    echo "scripts/check.sh: PYTHON must be a program, got $python; run scripts/test.sh, or name another" >&2
    exit 2
fi

failed=()
run() { # NAME COMMAND...
    echo "== $1"
    "${@:2}" || failed+=("$1")
}

types() { # mypy cannot see an editable install's mapped packages, so it reads a plain copy
    rm -rf build/site build/lib
    "$python" -m pip install --quiet --no-deps --no-build-isolation --target build/site . && "$python" -m mypy
}

run lint "$python" -m ruff check .
run format "$python" -m ruff format --check .
run types types
if [ ${#failed[@]} -gt 0 ]; then
    echo "scripts/check.sh: failed: ${failed[*]}" >&2
    exit 1
fi
