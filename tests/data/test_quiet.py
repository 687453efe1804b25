"""Nothing that foreign code says of a record reaches the console."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import warnings

import pytest

from harness.data import guard
from harness.data.quiet import LOG, Quiet

KEPT = logging.getLogger("kept")


def speak(text):
    """Every way to the console."""
    print(f"printed {text}")
    sys.stderr.write(f"written {text}")
    sys.__stdout__.write(f"real {text}")
    sys.stdout.buffer.write(f"bytes {text}".encode())
    os.write(1, f"one {text}".encode())
    os.write(2, f"two {text}".encode())
    warnings.simplefilter("always")
    warnings.showwarning(UserWarning(f"warned {text}"), UserWarning, "x.py", 1)
    logging.warning("logged %s", text)
    logging.basicConfig(level=logging.DEBUG)
    subprocess.run(["echo", f"child {text}"], check=True)


WAYS = ("printed", "written", "real", "bytes", "one", "two", "logged", "child")


@pytest.mark.parametrize("private", [True, False])
def test_what_foreign_code_says_stays_private(tmp_path, capfd, private):
    """Break: leave `Quiet` out of `guarded`."""
    folder = tmp_path / "private" if private else None
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    with warnings.catch_warnings():
        print("before")
        guard.guarded(speak, lambda: speak("SECRET"), folder)
        print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    if folder is not None:
        log = folder / LOG
        assert all(f"{way} SECRET" in log.read_text() for way in WAYS)
        assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_console_is_there_between_items(tmp_path, capfd):
    """Break: yield within the redirection."""

    def items():
        for i in range(1000):
            print("SECRET")
            yield i
        raise KeyError("SECRET")

    seen = []

    def consume():
        for i in guard.guarded_iteration(items, items(), tmp_path / "private"):
            seen.append(i)
            print(i)

    with pytest.raises(guard.ArgumentError, match="raised an error"):
        consume()
    assert seen == list(range(1000))
    out, err = capfd.readouterr()
    assert (out.split(), err) == ([str(i) for i in seen], "")
    assert (tmp_path / "private" / LOG).read_text().count("SECRET\n") >= 1000


def test_a_silent_one_leaves_no_log_and_contexts_may_lie_within_each_other(tmp_path, capfd):
    with Quiet(tmp_path):
        with Quiet(None):
            pass
        print("still", end="")
    print("heard")
    assert capfd.readouterr().out == "heard\n"
    assert (tmp_path / LOG).read_text() == "still"
    with Quiet(tmp_path / "other"):
        pass
    assert list((tmp_path / "other").iterdir()) == []
