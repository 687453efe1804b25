"""Three plugins of each kind from other people's wheels, one of which cheats: used by name, and it gains nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import conformance
from harness.cli import main
from tests import launching
from tests.launching import ROOT, Workplace
from tests.plans import write_spec

pytestmark = pytest.mark.ray

CHEATING = '''
import gc, os, pathlib, sys
SEEN = []

def cheats(self, user):
    """Whether anything of another user, of the run or of the machine can be seen, or a note be left."""
    found = bool(SEEN) or hasattr(type(self), "seen") or hasattr(os, "acme_seen")
    SEEN.append(user.texts)
    type(self).seen = os.acme_seen = True
    for attempt in (
        lambda: [o for o in gc.get_objects() if type(o).__name__ == "UserRecords" and o is not user][0],
        lambda: pathlib.Path("/proc/self/environ").read_bytes(),
        lambda: list(pathlib.Path(os.environ["ACME_FOLDER"]).rglob("*.arrow"))[0],
        lambda: pathlib.Path(os.environ["ACME_FOLDER"], "note").write_text(user.texts[0]),
        lambda: next(pathlib.Path(os.environ["ACME_FOLDER"]).iterdir()),
    ):
        try:
            attempt()
            found = True
        except Exception:
            pass
    return found
'''
SEGMENTATION = (
    '''"""Segments."""
from harness.plugins import OwnRecordsSegmenter, PublicSegmenter
'''
    + CHEATING
    + '''

class Links(OwnRecordsSegmenter):
    """Who wrote a link."""
    segments = ("plain", "links")
    def assign(self, user):
        return "links" if any("http" in text for text in user.texts) else "plain"

class Paying(PublicSegmenter):
    """Who pays."""
    segments, columns = ("paying", "others"), ("plan",)
    def assign(self, attributes):
        return "paying" if attributes["plan"] == "paid" else "others"

class Spy(OwnRecordsSegmenter):
    """Tells who was seen before, by whatever it finds."""
    segments = ("blind", "seeing")
    def assign(self, user):
        return "seeing" if cheats(self, user) else "blind"
'''
)
SENSITIVITY = (
    '''"""Scores."""
from harness.plugins import OwnRecordsScore
'''
    + CHEATING
    + '''

class Digits(OwnRecordsScore):
    """The share of digits."""
    def score(self, user):
        text = "".join(user.texts)
        return sum(c.isdigit() for c in text) / max(1, len(text))

class Shouting(OwnRecordsScore):
    """The share of texts in capitals."""
    def score(self, user):
        return sum(t.isupper() for t in user.texts) / max(1, len(user.texts))

class Gossip(OwnRecordsScore):
    """1 for whoever comes after somebody else."""
    def score(self, user):
        return 1.0 if cheats(self, user) else 0.0
'''
)
NOISE = '''"""Noise."""
from collections.abc import Mapping
from harness.plugins import Lever, NoisePolicy, Plateau, Proposal

class Halved(NoisePolicy):
    """Each group has half of the one before, by name."""
    def propose(self, groups, epsilon):
        return Proposal({name: epsilon / 2**i for i, name in enumerate(sorted(g.name for g in groups))})

class Late(NoisePolicy):
    """Less noise in the second half, for everybody."""
    def propose(self, groups, epsilon):
        return Proposal({g.name: epsilon for g in groups}, schedule=(Plateau(1, 1.2), Plateau(1, 0.8)))

class Twofaced(Mapping):
    """Modest when it is first asked."""
    def __init__(self, names, epsilon):
        self.names, self.epsilon, self.asked = names, epsilon, set()
    def __getitem__(self, name):
        again = name in self.asked
        self.asked.add(name)
        return 50 * self.epsilon if again else self.epsilon / 2
    def __iter__(self):
        return iter(self.names)
    def __len__(self):
        return len(self.names)

class Lying(Proposal):
    """Its own idea of equality, and of what it had said."""
    def __getattribute__(self, name):
        if name == "lever":
            count = object.__getattribute__(self, "__dict__").setdefault("count", 0)
            object.__getattribute__(self, "__dict__")["count"] = count + 1
            return Lever.CLIP_NORM if count < 1 else Lever.STEPS
        return object.__getattribute__(self, name)

class Liar(NoisePolicy):
    """Asks for little, and then for more."""
    def propose(self, groups, epsilon):
        return Lying(Twofaced([g.name for g in groups], epsilon))
'''
WHEELS: dict[str, tuple[str, dict[str, str]]] = {
    "segmentation": (SEGMENTATION, {"acme_links": "Links", "acme_paying": "Paying", "acme_spy": "Spy"}),
    "sensitivity": (SENSITIVITY, {"acme_digits": "Digits", "acme_shouting": "Shouting", "acme_gossip": "Gossip"}),
    "noise": (NOISE, {"acme_halved": "Halved", "acme_late": "Late", "acme_liar": "Liar"}),
}
CHEATS = {"segmentation": "acme_spy", "sensitivity": "acme_gossip", "noise": "acme_liar"}
PROJECT = """\
[build-system]
requires = ["setuptools>=77.0.3"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-{kind}"
version = "2.0"

[project.entry-points."uudp.{kind}"]
{entries}

[tool.setuptools]
py-modules = ["acme_{kind}"]
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the three wheels."""
    folder = tmp_path_factory.mktemp("acme")
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    for kind, (code, plugins) in WHEELS.items():
        (folder / kind).mkdir()
        (folder / kind / f"acme_{kind}.py").write_text(code)
        entries = "\n".join(f'{name} = "acme_{kind}:{cls}"' for name, cls in plugins.items())
        (folder / kind / "pyproject.toml").write_text(PROJECT.format(kind=kind, entries=entries))
    pip = [sys.executable, "-m", "pip"]
    sources = [str(folder / kind) for kind in WHEELS]
    subprocess.run([*pip, "wheel", *options, "-w", str(folder / "wheels"), *sources], check=True)
    files = [str(path) for path in (folder / "wheels").glob("*.whl")]
    assert len(files) == 3
    subprocess.run([*pip, "install", *options, "--target", str(folder / "installed"), *files], check=True)
    return folder / "installed"


@pytest.fixture
def installed(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """They are installed where this process looks, too."""
    monkeypatch.syspath_prepend(str(wheels))
    return wheels


def test_the_honest_ones_conform_and_plan(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All six, by name; what they propose is what is planned."""
    import acme_noise
    import acme_segmentation
    import acme_sensitivity

    for cls in (acme_segmentation.Links, acme_segmentation.Paying):
        conformance.check_segmenter(cls)
    for cls in (acme_sensitivity.Digits, acme_sensitivity.Shouting):
        conformance.check_score(cls)
    for cls in (acme_noise.Halved, acme_noise.Late):
        conformance.check_noise_policy(cls)
    monkeypatch.chdir(tmp_path)
    tiers = {"edges": [0.2], "names": ["a", "b"]}
    scores = {"scores": [{"type": "acme_digits"}, {"type": "acme_shouting"}], "tiers": tiers}
    given = {f"{s}/{t}": 0.25 for s in ("plain", "links") for t in ("a", "b")}
    path = write_spec(
        tmp_path, segmentation={"type": "acme_links"}, sensitivity=scores, noise={"type": "acme_halved"},
        data={"weights": given},
    )  # fmt: skip
    assert main.run_app(["plan", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [(g["name"], g["target_epsilon"]) for g in plan["groups"]] == [
        ("plain/a", 2), ("plain/b", 1), ("links/a", 8), ("links/b", 4)
    ]  # fmt: skip
    assert all(g["epsilon"] <= g["target_epsilon"] for g in plan["groups"])
    path = write_spec(tmp_path, segmentation={"type": "acme_paying"}, noise={"type": "acme_late"})
    assert main.run_app(["plan", str(path), "--json"]) == 0
    first, second = [part["noise"] for part in json.loads(capsys.readouterr().out)["schedule"]]
    assert second / first == pytest.approx(0.8 / 1.2)


def test_a_policy_with_two_faces_is_held_to_the_first(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was checked is what is planned. Red when a target or the lever is read a second time."""
    monkeypatch.chdir(tmp_path)
    segments = {"type": "attribute", "column": "plan", "values": ["free", "paid"]}
    path = write_spec(tmp_path, segmentation=segments, noise={"type": "acme_liar"})
    assert main.run_app(["plan", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [g["target_epsilon"] for g in plan["groups"]] == [4, 4]
    assert plan["epsilon"] <= 4
    assert {g["steps"] for g in plan["groups"]} == {plan["steps"]}


@pytest.mark.slow
def test_cheats_gain_nothing_in_a_whole_run(wheels: Path, tmp_path: Path) -> None:
    """One of each kind, in a run on Ray: nobody is told apart, nothing is left, and ε is what was accounted.

    Red when own-records rules of others are asked in the harness's own process.
    """
    weights = {f"{s}/{t}": 0.25 for s in ("blind", "seeing") for t in ("low", "high")}
    tiers = {"edges": [0.5], "names": ["low", "high"]}
    place = Workplace(
        tmp_path,
        name="cheated",
        data={"attributes": [], "weights": weights},
        blocks={
            "segmentation": {"type": CHEATS["segmentation"]},
            "sensitivity": {"scores": [{"type": CHEATS["sensitivity"]}], "tiers": tiers},
            "noise": {"type": CHEATS["noise"]},
        },
        train={"steps": 1},
    )
    place.environment["PYTHONPATH"] = os.pathsep.join([str(wheels), str(ROOT)])
    place.environment["ACME_FOLDER"] = str(tmp_path)
    try:
        run = launching.ended(place, place.start_run())
        assert run.code == 0, run.err
        plan: dict[str, Any] = launching.read_json(run.folder / "plan.json")
        names = [group["name"] for group in plan["groups"]]
        groups = np.load(run.folder / "private" / "groups.npy", allow_pickle=False)
        assert {names[group] for group in groups} == {"blind/low"}
        assert not list(tmp_path.rglob("note"))
        assert plan["epsilon"] <= 8
        assert all(group["epsilon"] <= group["target_epsilon"] == 4 for group in plan["groups"])
    finally:
        place.clean()
