"""What a third party's tests call; and a package as `uudp policies new` starts it, installed and found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import conformance, plugins
from harness.conformance import ConformanceError, check_noise_policy, check_score, check_segmenter, check_source
from harness.plugins import OwnRecordsScore, OwnRecordsSegmenter, Proposal

ROOT = Path(__file__).resolve().parent.parent


class Stateful(OwnRecordsSegmenter):
    segments = ("first", "later")
    seen = 0

    def assign(self, user):
        self.seen += 1
        return "first" if self.seen == 1 else "later"


class Foreign(OwnRecordsSegmenter):
    segments = ("a",)

    def assign(self, user):
        return "b"


class Hashing(OwnRecordsSegmenter):
    segments = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def assign(self, user):
        return str(hash(str(user.texts)) % 10)


class Reading(OwnRecordsScore):
    def score(self, user):
        with open("/etc/hosts") as stream:
            return len(stream.read()) * 0.0


class Loud(OwnRecordsScore):
    def score(self, user):
        return float(len(user.texts))


class Calling(OwnRecordsScore):
    def score(self, user):
        import torch  # noqa: F401

        return 0.0


class Greedy(plugins.NoisePolicy):
    def propose(self, groups, epsilon):
        return Proposal({g.name: max(epsilon, 5.0) for g in groups})


class Ordered(plugins.NoisePolicy):
    def propose(self, groups, epsilon):
        return Proposal({g.name: epsilon / (i + 1) for i, g in enumerate(groups)})


def test_the_built_in_plugins_conform(tmp_path):
    """Break: `deepcopy`-free state, a fixed budget, or an unordered answer in any one of them."""
    check_segmenter(plugins.segmentation.get("none"))
    check_segmenter(plugins.segmentation.get("attribute"), {"column": "plan"})
    check_segmenter(plugins.segmentation.get("usage"), {"edges": (3, 12)})
    check_score(plugins.sensitivity.get("volume"), {"low": 10, "high": 1000})
    targets = {"free": 8.0, "paid": 4.0, "other": 2.0}
    for name in ("scale", "sample"):
        equal = {"epsilon": dict.fromkeys(targets, 8.0)}
        check_noise_policy(plugins.noise.get(name), {"epsilon": targets}, equal=equal)
    check_noise_policy(plugins.noise.get("uniform"))
    check_noise_policy(plugins.noise.get("none"))
    path = tmp_path / "posts.jsonl"
    path.write_text('{"user": "ann", "text": "a", "plan": "free"}\n{"user": "bob", "text": ""}\nbroken\n')
    check_source(plugins.source.get("jsonl"), {"path": str(path)}, attributes=["plan"])


@pytest.mark.parametrize(
    ("check", "cls", "message"),
    [
        (check_segmenter, Stateful, "it keeps state"),
        (check_segmenter, Foreign, "'b', which is not among `segments`"),
        (check_segmenter, Hashing, "answers otherwise in another process"),
        (check_score, Reading, "reaches for the file hosts"),
        (check_score, Loud, r"a score is a number in \[0, 1\]"),
        (check_score, Calling, "reaches for .*torch"),
        (check_score, Foreign, "is no subclass of SensitivityScore"),
        (check_noise_policy, Greedy, "under the budget 4"),
        (check_noise_policy, Ordered, "when the groups come in another order"),
    ],
)
def test_what_does_not_conform_is_said_so(check, cls, message):
    """Break: any one of the checks taken out."""
    with pytest.raises(ConformanceError, match=message):
        check(cls)
    assert issubclass(conformance.ConformanceError, AssertionError)


def call(*arguments, cwd, path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.parametrize("kind", ["noise", "segmentation", "sensitivity"])
def test_a_started_package_installs_conforms_and_is_found(tmp_path, kind):
    """From another wheel, in fresh processes. Break: the entry point's group without the kind."""
    made = call("-m", "harness", "policies", "new", kind, "mine", cwd=tmp_path, path=[ROOT])
    assert made.returncode == 0, made.stderr
    again = call("-m", "harness", "policies", "new", kind, "mine", cwd=tmp_path, path=[ROOT])
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    target = tmp_path / "installed"
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    installed = call(*pip, str(tmp_path / "mine"), cwd=tmp_path, path=[ROOT])
    assert installed.returncode == 0, installed.stderr
    path = [target, ROOT]
    tested = call("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "mine"), cwd=tmp_path, path=path)
    assert tested.returncode == 0, tested.stdout
    listed = call("-m", "harness", "policies", cwd=tmp_path, path=path)
    assert "entry point of uudp-mine 0.1.0" in listed.stdout
    shown = call("-m", "harness", "policies", "show", "mine", "--json", cwd=tmp_path, path=path)
    assert f'"kind": "{kind}"' in shown.stdout
