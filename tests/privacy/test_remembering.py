"""What accounting remembers on disk: found again only where nothing changed, and never a danger."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import remembering
from harness.privacy import accounting
from harness.privacy.exposure import Exposure
from harness.privacy.mechanism import Charge, GroupMechanism, Mechanism, Stretch
from harness.privacy.remembering import MODULES, remembered

ROOT = Path(__file__).resolve().parents[2]
MECHANISM = Mechanism(5, 2.0, (GroupMechanism("everyone", 1000.0, 0.1, 1.0, 5, 1),), "add_or_remove")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("UUDP_CACHE", str(tmp_path / "cache"))
    remembering._secret.cache_clear()
    remembering._version.cache_clear()
    yield tmp_path / "cache"
    remembering._secret.cache_clear()
    remembering._version.cache_clear()


def counting():
    """A remembered function that counts its calls."""
    calls = []

    @remembered
    def function(*args, **kwargs):
        calls.append((args, kwargs))
        return float(len(calls))

    return function, calls


def kept(cache):
    return sorted((cache / "accounting").iterdir())


EXPOSURE = Exposure(0.1, 5, 1e-5)
ARGUMENTS = [
    (1.0,),
    (math.nextafter(1.0, 2),),
    (1.0, 2),
    ("1.0",),
    ((1.0,),),
    (EXPOSURE,),
    *(
        (EXPOSURE.of(**change),)
        for change in (
            {"rate": 0.2},
            {"steps": 6},
            {"delta": 1e-6},
            {"accountant": "rdp"},
            {"unit": "example"},
            {"examples": 2},
            {"taken": 4},
            {"schedule": (Stretch(2), Stretch(3, noise=0.9))},
            {"charges": (Charge("a", 9.0),)},
        )
    ),
    (MECHANISM,),
    (dataclasses.replace(MECHANISM, noise_std=math.nextafter(2.0, 3)),),
    (dataclasses.replace(MECHANISM, holdout=Charge("b", 9.0)),),
]


def test_every_argument_to_its_last_digit_has_a_place_of_its_own(cache):
    """Red when the key is made of rounded numbers, or of positional arguments alone."""
    function, calls = counting()
    found = [function(*args) for args in ARGUMENTS] + [function(1.0, accountant=a) for a in ("pld", "rdp")]
    assert len(calls) == len(set(found)) == len(ARGUMENTS) + 2
    again = [function(*args) for args in ARGUMENTS] + [function(1.0, accountant=a) for a in ("pld", "rdp")]
    assert again == found
    assert len(calls) == len(found)


@pytest.mark.parametrize("what", ["library", "module", "cache key"])
def test_other_code_or_another_key_counts_again(cache, monkeypatch, tmp_path, what):
    """Red when versions, sources or the key are left out of place and seal."""
    function, calls = counting()
    function(1.0)
    if what == "library":
        real = remembering.importlib.metadata.version
        other = lambda name: real(name) + (".post1" if name == "scipy" else "")  # noqa: E731
        monkeypatch.setattr(remembering.importlib.metadata, "version", other)
    elif what == "module":
        monkeypatch.setattr(
            Path,
            "read_bytes",
            lambda path, real=Path.read_bytes: real(path) + b"#" if path.name == "rates.py" else real(path),
        )
    else:
        (cache / "fingerprint.key").write_bytes(b"\7" * 32)
    remembering._secret.cache_clear()
    remembering._version.cache_clear()
    assert function(1.0) == 2.0
    assert len(calls) == 2


def test_every_module_that_decides_a_result_is_in_the_key():
    """All that the accountants import from this package. Red when a new module is not listed."""
    code = (
        "import sys, harness.privacy.rates, harness.privacy.levers, harness.privacy.renyi, harness.privacy.mixture;"
        "print(*[m.rsplit('.', 1)[1] for m in sys.modules if m.startswith('harness.privacy.')])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(out.split()) - {"quiet", "remembering"} <= set(MODULES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-3],
        lambda text: text.replace("1.0", "0.5"),
        lambda text: "0" * 64 + text[64:],
        lambda text: text.replace("\n", " "),
        lambda text: "\x00\xff" + text,
    ],
    ids=["empty", "cut", "edited", "another seal", "one line", "binary"],
)
def test_a_file_that_is_not_as_it_was_written_is_ignored_and_mended(cache, damage):
    """An ε from such a file could be anything. Red when the seal is not compared."""
    function, calls = counting()
    assert function(1.0) == 1.0
    (path,) = kept(cache)
    path.write_bytes(damage(path.read_text()).encode("latin-1"))
    assert function(1.0) == 2.0
    assert function(1.0) == 2.0
    assert len(calls) == 2


def test_a_result_in_the_place_of_another_is_ignored(cache):
    """A sealed file, moved. Red when the seal does not cover the arguments."""
    function, calls = counting()
    function(1.0)
    (first,) = kept(cache)
    function(2.0)
    (second,) = set(kept(cache)) - {first}
    second.write_bytes(first.read_bytes())
    assert function(2.0) == 3.0
    assert len(calls) == 3


def test_nothing_can_be_kept_and_everything_goes_on(cache, monkeypatch):
    """A file where the folder should be, and a full disk. Red when the error reaches the user."""
    function, calls = counting()
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("in the way")
    assert [function(1.0), function(1.0)] == [1.0, 2.0]
    cache.unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembering, "write_private", full)
    assert [function(1.0), function(1.0)] == [3.0, 4.0]
    assert len(calls) == 4


def test_infinity_is_remembered(cache):
    """Red when JSON refuses it, or it comes back as None."""
    calls = []

    @remembered
    def function(x):
        calls.append(x)
        return [math.inf, x]

    assert function(0.1) == function(0.1) == [math.inf, 0.1]
    assert len(calls) == 1


def test_results_are_the_same_with_and_without_it(cache, monkeypatch):
    """To the last bit. Red when a result is rounded on its way to the disk."""
    plain = accounting.later_epsilon.__wrapped__(MECHANISM, 0, 1e-5, "pld")
    first, second = (accounting.later_epsilon(MECHANISM, 0, 1e-5, "pld") for _ in range(2))
    assert plain == first == second
    assert len(kept(cache)) == 1


def test_a_file_is_replaced_and_never_written_over(cache):
    """Whoever reads it meanwhile has the old one, whole. Red when a file is written in place."""
    function, _ = counting()
    function(1.0)
    (path,) = kept(cache)
    path.write_text("damaged")
    with path.open() as reading:
        assert function(1.0) == 2.0
        assert reading.read() == "damaged"
    assert kept(cache) == [path]


def test_two_processes_at_once(cache):
    """Both answer, and what stays is whole. Red when each process has places of its own."""
    code = (
        "from harness.privacy.remembering import remembered\n"
        "def f(x): return [x] * 20000\n"
        "f.__module__ = 'made'\n"
        "g = remembered(f)\n"
        "for i in range(40): assert g(i % 4) == [i % 4] * 20000\n"
    )
    environment = os.environ | {"UUDP_CACHE": str(cache)}
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(kept(cache)) == 4
    assert all(len(json.loads(path.read_text().split("\n", 1)[1])["result"]) == 20000 for path in kept(cache))


def test_it_holds_a_number_and_a_seal_for_its_owner_alone(cache):
    """No argument, no name. Red when the key is written beside the result, or the file is readable by others."""
    accounting.later_epsilon(MECHANISM, 0, 1e-5, "rdp")
    (path,) = kept(cache)
    seal, content = path.read_text().split("\n", 1)
    assert len(seal) == 64
    assert set(json.loads(content)) == {"result"}
    assert "everyone" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
