#!/usr/bin/env bash
# Checks the project: style, types, import floors, then the tests.
#
#   bash scripts/test.sh [--slow] [arguments of pytest]
#
# Tests that need Chromium or PostgreSQL are left out, by name, where that is missing;
# with CI or UUDP_REQUIRE_ALL=1 in the environment nothing is left out, and what is missing fails.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_env.sh"

slow=false
arguments=()
for argument in "$@"; do
    if [ "$argument" = --slow ]; then slow=true; else arguments+=("$argument"); fi
done
if [ -n "${CI:-}" ]; then
    export UUDP_REQUIRE_ALL=1
fi

has_chromium() {
    local name
    for name in "${UUDP_CHROMIUM:-chromium}" chromium-browser google-chrome; do
        command -v "$name" >/dev/null 2>&1 && return
    done
    return 1
}

has_postgres() { command -v initdb >/dev/null 2>&1 || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

# The tests to run, as a marker expression for pytest; says what is left out.
selection() {
    local chosen=()
    if ! $slow; then
        chosen+=("not slow")
        say "Left out: slow tests (--slow runs them)"
    fi
    if [ "${UUDP_REQUIRE_ALL:-}" != 1 ]; then
        if ! has_chromium; then
            chosen+=("not chromium")
            say "Left out: tests that need Chromium (not found; UUDP_CHROMIUM can name it)"
        fi
        if ! has_postgres; then
            chosen+=("not postgres")
            say "Left out: tests that need PostgreSQL (initdb not found)"
        fi
    fi
    local expression="" part
    for part in ${chosen[@]+"${chosen[@]}"}; do expression="${expression:+$expression and }$part"; done
    printf '%s\n' "$expression"
}

failed=()
check() {
    say "== $1"
    "${@:2}" || failed+=("$1")
}

ensure_venv dev
cd -- "$UUDP_ROOT"
bin=.venv/bin

check "ruff check" "$bin/ruff" check
check "ruff format" "$bin/ruff" format --check
check "mypy" "$bin/mypy" --strict harness policies
check "import floors" "$bin/lint-imports" --no-logo
expression=$(selection)
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: $(printf '%s; ' "${failed[@]}")the tests follow"
fi

# Whole runs on Ray wait for processes most of the time: the other tests go on beside them. (Those are the ones in the
# background, where bash has Ctrl-C ignored, which the tests of runs need.)
status=0
if [ ${#arguments[@]} -eq 0 ]; then
    say "== pytest, in two parts: whole runs on Ray, attacks and searches; beside them all others (shown at the end)"
    others=$(mktemp)
    # So that both parts take about as long.
    apart=(tests/auditing tests/sweeping)
    "$bin/python" -m pytest -m "${expression:+($expression) and }not ray" "${apart[@]/#/--ignore=}" >"$others" 2>&1 &
    beside=$!
    trap 'kill "$beside" 2>/dev/null || true; rm -f -- "$others"' EXIT
    "$bin/python" -m pytest -m "${expression:+($expression) and }ray" || status=$?
    "$bin/python" -m pytest -m "${expression:+($expression) and }not ray" "${apart[@]}" || status=$?
    wait "$beside" || status=$?
    trap 'rm -f -- "$others"' EXIT
    cat -- "$others"
else
    say "== pytest"
    "$bin/python" -m pytest -m "$expression" "${arguments[@]}" || status=$?
fi
if [ "$status" -eq 0 ] && [ ${#failed[@]} -gt 0 ]; then
    status=1
fi
exit "$status"
