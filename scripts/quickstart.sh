#!/usr/bin/env bash
# Fine-tunes a real language model on real text with user-level differential privacy, and shows a report.
#
#   bash scripts/quickstart.sh [key=value… and options of `uudp run`]
#
# Makes .venv in the project's root the first time. It can be stopped and started again at any point.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_env.sh"

ensure_venv run
cd -- "$UUDP_ROOT"

say "Running: uudp run specs/quickstart.yaml --yes $*"
status=0
.venv/bin/uudp run specs/quickstart.yaml --yes "$@" || status=$?
case $status in
    0) say "Done. The report is the file named in the last line above: open it in a browser." ;;
    130) say "Interrupted. To continue: bash scripts/quickstart.sh --resume" ;;
esac
exit "$status"
