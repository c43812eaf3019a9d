#!/usr/bin/env bash
# The quick loop: unit tests of the crates you touched, and the Python tests that need no broker, no store and no training run.
#
#   quick.sh [CRATE …]     default: the crates with changes that are not committed, or in commits that are not upstream
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$HOME/.cargo/bin:$PATH"

changed() {
    git status --porcelain --untracked-files=all | cut -c4-
    # Where there is no upstream: the last commit.
    git diff --name-only '@{upstream}...HEAD' 2>/dev/null || git diff --name-only HEAD~1 2>/dev/null || true
}

crates=("$@")
if [ ${#crates[@]} = 0 ]; then
    for crate in connectors transforms loader; do
        # A crate is touched when one that it is built on is.
        if changed | grep -qE "^($crate|Cargo\.)" || { [ "$crate" = loader ] && [ ${#crates[@]} -gt 0 ]; }; then
            crates+=("$crate")
        fi
    done
fi

# What takes long, or needs something beside this machine's processor.
slow=(kafka kafka_example kafka_faults kafka_secure produce object_store tables limit examples lifecycle docs
    resume ranks sources mixing stale transforms_vs_torchvision reentrancy opening)
ignored=()
for name in "${slow[@]}"; do ignored+=(--ignore "tests/test_$name.py"); done

for crate in "${crates[@]}"; do
    python/scripts/tidy.sh cargo test --release --quiet -p "fuelrail-$crate" --lib
done
# Half of a short run is the import of torch, unless its bytecode is kept: here, and not beside the sources.
export PYTHONDONTWRITEBYTECODE='' PYTHONPYCACHEPREFIX=$PWD/build/pycache
# The wheel and its daemon are built by `make setup`; a daemon that was built since is newer than the wheel's.
python/scripts/tidy.sh .venv/bin/pytest -q -n "${JOBS:-2}" --dist loadfile "${ignored[@]}" tests
