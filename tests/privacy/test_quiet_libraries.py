"""Libraries below the accountants warn, log and overflow: none of that reaches whoever asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.plans import ATTRIBUTE, write_spec

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = ("--noise-multiplier", "--rate", "--steps", "--delta")
WEIGHTS = {"free": 0.6, "paid": 0.3, "other": 0.1}


def asked(*arguments):
    """The exit code and stderr of a command line, with every warning switched on."""
    code = (
        "import importlib, sys, warnings\n"
        "warnings.filterwarnings('ignore', category=DeprecationWarning)\n"
        "warnings.filterwarnings('ignore', category=ResourceWarning)\n"
        "from harness.cli import main\n"
        "sys.exit(main.run_app(sys.argv[1:]))"
    )
    command = [sys.executable, "-W", "always", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("numbers", "more"),
    [
        (("0.03", "1", "1", "1e-12"), ()),
        (("0.01", "1e-8", "3", "1e-12"), ()),
        (("1e6", "1e-8", "1", "0.1"), ()),
        (("0.2", "0.999", "10", "1e-5"), ("--examples-per-user", "12")),
        (("0.7", "1e-8", "100", "1e-9"), ("--examples-per-user", "1000")),
        (("0.5", "0.5", "10", "1e-5"), ("--accountant", "rdp", "--examples-per-user", "30")),
        (("0.05", "0.5", "10", "1e-5"), ("--trials", "poisson", "--trials-mean", "1000000")),
        (("0.5", "0.9", "10", "1e-5"), ("--trials", "logarithmic", "--trials-mean", "1", "--examples-per-user", "9")),
    ],
)
def test_extreme_numbers_are_answered_without_a_murmur(numbers, more):
    """Nothing on stderr, or our one line and exit code 2.

    Red when ``np.errstate`` is taken out of `_pld`, or absl's verbosity is left as it is.
    """
    code, err = asked("account", *(part for pair in zip(ACCOUNT, numbers, strict=True) for part in pair), *more)
    assert code in (0, 2)
    assert err == "" if code == 0 else (err.startswith("uudp: ") and err.count("\n") == 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"epsilon": 1000.0, "delta": 1e-12}},
        {"privacy": {"epsilon": 0.05, "delta": 1e-9}, "sampling": {"unit": "example", "expected": 20}},
        {
            "segmentation": ATTRIBUTE,
            "data": {"weights": WEIGHTS},
            "noise": {"type": "scale", "epsilon": {"free": 900.0, "paid": 4.0, "other": 0.02}},
            "privacy": {"epsilon": 900.0},
        },
    ],
    ids=["huge", "tiny", "both"],
)
def test_extreme_plans_are_made_without_a_murmur(tmp_path, changes):
    """Red when a library's warning comes through."""
    code, err = asked("plan", write_spec(tmp_path, **changes), "--json")
    assert code in (0, 3)
    assert err == "" if code == 0 else (err.startswith("uudp: ") and err.count("\n") == 1)
