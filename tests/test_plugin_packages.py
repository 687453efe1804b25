"""Plugins from other people's wheels: started, tested, installed, used in a whole run; and broken ones."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from harness.cli import main
from tests import launching
from tests.launching import ROOT, Workplace
from tests.plans import write_spec
from tests.tiny import make_spec, save_base, write_posts

pytestmark = pytest.mark.ray

STARTED = {"segmentation": "theirs_s", "sensitivity": "theirs_r", "noise": "theirs_n"}
"""Kinds, and the names that specs say."""
LEARNED = "theirs_l"
"""A segmentation that asks a private session."""


def call(*arguments: str, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one package per kind, as `uudp policies new` writes them."""
    folder = tmp_path_factory.mktemp("started")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for kind, name in (*STARTED.items(), ("session", LEARNED)):
            assert main.run_app(["policies", "new", kind, name]) == 0
            assert main.run_app(["policies", "new", kind, name]) == 2  # never over what is there
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def installed(started: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their wheels, in a folder of their own."""
    target = tmp_path_factory.mktemp("installed")
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    folders = [str(started / name) for name in (*STARTED.values(), LEARNED)]
    wheels = started / "wheels"
    built = call("-m", "pip", "wheel", *options, "-w", str(wheels), *folders, cwd=started, path=[ROOT])
    assert built.returncode == 0, built.stderr
    files = [str(path) for path in wheels.glob("*.whl")]
    assert len(files) == len(STARTED) + 1
    done = call("-m", "pip", "install", *options, "--target", str(target), *files, cwd=started, path=[ROOT])
    assert done.returncode == 0, done.stderr
    return target


def test_started_packages_conform(started: Path, installed: Path) -> None:
    """Their own tests. Break: the entry point's group without the kind."""
    folders = [str(started / name) for name in (*STARTED.values(), LEARNED)]
    done = call("-m", "pytest", "-q", "-p", "no:cacheprovider", *folders, cwd=started, path=[installed, ROOT])
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


@pytest.fixture
def theirs(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """They are installed where this process looks, too."""
    monkeypatch.syspath_prepend(str(installed))
    return installed


def test_they_are_listed_with_their_package(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: the origin left out."""
    assert main.run_app(["policies"]) == 0
    out = capsys.readouterr().out
    for kind, name in STARTED.items():
        assert f"entry point of uudp-{name} 0.1.0" in out
        assert main.run_app(["policies", "show", name]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"{kind} {name}  (entry point of uudp-{name} 0.1.0)")
        assert "Say here what it is good for" in shown


GUARD = """\
import os, sys

def note(*words):
    file = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, words)) + "\\n").encode())
    os.close(file)

def watch(event, arguments):
    if event == "socket.getaddrinfo":
        note(arguments[0])
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        note(arguments[1][0])

sys.addaudithook(watch)
if any("/ray/" in word for word in sys.orig_argv):
    note("started", os.environ.get("RAY_USAGE_STATS_ENABLED"), os.environ.get("HF_HUB_DISABLE_TELEMETRY"))
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    from harness import plugins
    for kind, name in (word.split("=") for word in os.environ["PLUGINS"].split()):
        registry = getattr(plugins, kind)
        note("worker", registry.get(name).__name__, registry.origin(name))
"""
"""A sitecustomize: notes whom a Python process of the run looks up or connects to, and what Ray's find."""
TOLERATED = {"8.8.8.8", "169.254.169.254", "metadata.google.internal"}
"""Ray: how it learns the machine's own address (nothing is sent), and where it asks which cloud it is in."""


def own_names() -> set[str]:
    found = {"None", "", "localhost", "0.0.0.0", "::", socket.gethostname(), socket.getfqdn()}
    return found | {a.address.partition("%")[0] for each in psutil.net_if_addrs().values() for a in each}


def test_a_whole_run_with_plugins_from_three_wheels(installed: Path, tmp_path: Path) -> None:
    """Two workers, all three kinds by their entry points; and nothing phones home, though nobody forbids it.

    Break: entry points left out of `Registry._all`; or the line that switches one of the statistics off.
    """
    tiers = {"edges": [0.1], "names": ["low", "high"]}
    place = Workplace(
        tmp_path,
        name="theirs",
        data={"attributes": [], "weights": {f"{s}/{t}": 0.25 for s in ("little", "much") for t in ("low", "high")}},
        blocks={
            "segmentation": {"type": STARTED["segmentation"], "edge": 3},
            "sensitivity": {"scores": [{"type": STARTED["sensitivity"], "full": 200}], "tiers": tiers},
            "noise": {"type": STARTED["noise"], "strictest": 0.5},
        },
        train={"steps": 1},
        compute={"workers": 2, "deepspeed": {"stage": 1}},
    )
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    place.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "guard"), str(installed), str(ROOT)])
    place.environment["NOTES"] = str(tmp_path / "notes.txt")
    place.environment["PLUGINS"] = " ".join(f"{kind}={name}" for kind, name in STARTED.items())
    for name in ("RAY_USAGE_STATS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        place.environment.pop(name)
    try:
        run = launching.ended(place, place.start_run())
        assert run.code == 0, run.err
        lines = set((tmp_path / "notes.txt").read_text().splitlines())
        found = {f"worker Theirs{n[-1].upper()} entry point of uudp-{n} 0.1.0" for n in STARTED.values()}
        assert {line for line in lines if " " in line} == {"started 0 1"} | found
        assert {line for line in lines if " " not in line} - own_names() - TOLERATED == set()
        plan = launching.read_json(run.folder / "plan.json")
        targets = {g["name"]: g["target_epsilon"] for g in plan["groups"]}
        names = sorted(targets)
        assert names == ["little/high", "little/low", "much/high", "much/low"]
        assert [targets[n] for n in names] == pytest.approx([8, 8 * 5 / 6, 8 * 4 / 6, 4])
        assert {p["target"] for p in plan["plugins"]} >= {
            f"uudp_{n}:{''.join(part.capitalize() for part in n.split('_'))}" for n in STARTED.values()
        }
        assert launching.adapter(run.folder)
    finally:
        place.clean()


# --- broken ones --------------------------------------------------------------------------------------------

BROKEN = """
from harness.plugins import NoisePolicy, OwnRecordsScore, OwnRecordsSegmenter, Proposal, PublicSegmenter

class Leaving(NoisePolicy):
    def propose(self, groups, epsilon):
        raise SystemExit(0)

class Raising(NoisePolicy):
    def propose(self, groups, epsilon):
        raise RuntimeError("two\\nlines")

class Silent(NoisePolicy):
    def propose(self, groups, epsilon):
        return None

class Text(NoisePolicy):
    def propose(self, groups, epsilon):
        return Proposal({g.name: "much" for g in groups})

class Greedy(NoisePolicy):
    def propose(self, groups, epsilon):
        return Proposal({g.name: 10 * epsilon for g in groups})

class Unbuildable(Greedy):
    def __init__(self, parameters):
        raise OSError("no such file")

class OneText(OwnRecordsSegmenter):
    segments = "everyone"
    def assign(self, user):
        return "everyone"

class Twins(OwnRecordsSegmenter):
    segments = ("a", "a")
    def assign(self, user):
        return "a"

class Unbound(PublicSegmenter):
    segments, columns = None, ("plan",)
    def bind(self, domain):
        raise KeyError("secret value of a column")
    def assign(self, attributes):
        return "a"

class Stranger(OwnRecordsSegmenter):
    segments = ("a",)
    def assign(self, user):
        return user.texts[0]

class Failing(OwnRecordsSegmenter):
    segments = ("a",)
    def assign(self, user):
        raise ValueError(user.texts[0])

class Huge(OwnRecordsScore):
    def score(self, user):
        return 1e9

class NoScore(OwnRecordsScore):
    def score(self, user):
        return user.texts[0]
"""
ENTRIES = {
    "noise": {
        "unfound": "nowhere_at_all:Thing", "halfway": "bad_half:Thing", "leaving": "bad_exit:Thing",
        "lost": "bad_plugins:Lost", "stray": "bad_plugins:Failing", "plain": "bad_plugins:Proposal",
        "raising": "bad_plugins:Raising", "exiting": "bad_plugins:Leaving",
        "silent": "bad_plugins:Silent", "text": "bad_plugins:Text",
        "greedy": "bad_plugins:Greedy", "unbuildable": "bad_plugins:Unbuildable", "sample": "bad_plugins:Raising",
    },
    "segmentation": {
        "onetext": "bad_plugins:OneText", "twins": "bad_plugins:Twins", "unbound": "bad_plugins:Unbound",
        "stranger": "bad_plugins:Stranger", "failing": "bad_plugins:Failing",
    },
    "sensitivity": {"huge": "bad_plugins:Huge", "noscore": "bad_plugins:NoScore"},
}  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package, as the files that pip leaves, whose plugins are all wrong."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad_plugins.py").write_text(BROKEN)
    (folder / "bad_half.py").write_text("import a_library_that_is_not_there\n")
    (folder / "bad_exit.py").write_text("raise SystemExit(0)\n")
    info = folder / "bad_plugins-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugins\nVersion: 1.2\n")
    lines = [f"[uudp.{kind}]\n" + "".join(f"{n} = {t}\n" for n, t in e.items()) for kind, e in ENTRIES.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


OWNER = "of bad-plugins 1.2"


IMPORTED, KIND = "can't be imported", "is no noise: it must be a subclass of NoisePolicy"


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("noise", "unfound", f'noise "unfound" {OWNER} (nowhere_at_all:Thing) {IMPORTED} (ModuleNotFoundError: No mod'),
        ("noise", "halfway", f'"halfway" {OWNER} (bad_half:Thing) {IMPORTED} (ModuleNotFoundError: No module named'),
        ("noise", "leaving", f'"leaving" {OWNER} (bad_exit:Thing) {IMPORTED} (SystemExit: 0)'),
        ("noise", "lost", f'"lost" {OWNER} (bad_plugins:Lost) {IMPORTED} (AttributeError:'),
        ("noise", "stray", f'"stray" {OWNER} (bad_plugins:Failing) {KIND}'),
        ("noise", "plain", f'"plain" {OWNER} (bad_plugins:Proposal) {KIND}'),
        ("noise", "sample", '"sample" is announced by uudp itself (policies.noise.sample:Sample) and bad-plugins 1.2'),
        ("noise", "raising", f"noise: bad_plugins.Raising {OWNER} fails (RuntimeError: two\\nlines)"),
        ("noise", "exiting", f"noise: bad_plugins.Leaving {OWNER} fails (SystemExit: 0)"),
        ("noise", "silent", f"noise: bad_plugins.Silent {OWNER} proposes no Proposal with a target ε per group"),
        ("noise", "text", f"noise: bad_plugins.Text {OWNER} proposes 'much' for \"everyone\", which is no number"),
        ("noise", "greedy", f'noise: bad_plugins.Greedy {OWNER} proposes ε = 80 for "everyone"; privacy.epsilon is 8'),
        ("noise", "unbuildable", f"noise: bad_plugins.Unbuildable {OWNER} fails (OSError: no such file)"),
        ("segmentation", "onetext", f"bad_plugins.OneText {OWNER} fails (TypeError: segments is one text, not several"),
        ("segmentation", "twins", f"bad_plugins.Twins {OWNER} must announce at least one segment, all with different"),
        ("segmentation", "unbound", f"bad_plugins.Unbound {OWNER} fails (KeyError) for the values of its columns"),
    ],
)
def test_a_broken_plugin_is_named_in_one_line(
    kind: str,
    name: str,
    says: str,
    bad: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the package that it comes from, exit 2. Break: any of the places where somebody's code is called."""
    monkeypatch.syspath_prepend(str(bad))
    assert main.run_app(["plan", str(write_spec(tmp_path)), f"{kind}.type={name}"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_one_that_fails_on_a_users_records_shows_none_of_them(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a whole run, before training; what it raised goes to the private folder. Break: chain what was raised."""
    monkeypatch.syspath_prepend(str(bad))
    monkeypatch.chdir(tmp_path)
    base, posts = save_base(tmp_path / "base"), [{"user": f"u{i}", "text": f"canary {i}"} for i in range(40)]
    path = write_posts(tmp_path / "posts.jsonl", posts)
    sensitivity: dict[str, Any] = {"tiers": {"edges": [0.5], "names": ["low", "high"]}}
    weights = {"low": 0.5, "high": 0.5}
    for blocks, says in (
        ({"segmentation": {"type": "stranger"}}, "bad_plugins.Stranger {} named a segment that it had not announced"),
        ({"segmentation": {"type": "failing"}}, "bad_plugins.Failing {} raised an error"),
        ({"sensitivity": sensitivity | {"scores": [{"type": "huge"}]}}, "bad_plugins.Huge {} gave a score that is no"),
        ({"sensitivity": sensitivity | {"scores": [{"type": "noscore"}]}}, "bad_plugins.NoScore {} gave a score that"),
    ):
        data = {"attributes": [], "weights": weights if "sensitivity" in blocks else {"a": 1.0}}
        noise = {"type": "scale", "epsilon": dict.fromkeys(data["weights"], 8.0)}
        whole = {"segmentation": {"type": "none"}, "noise": noise, **blocks}
        spec = make_spec(base, path, data=data, sampling={"examples_per_user": 1}).model_dump(
            mode="json", exclude_unset=True
        )
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec | whole))
        assert main.run_app(["run", "spec.yaml", "--yes"]) == 2
        error = capsys.readouterr().err.splitlines()
        assert error[-1].startswith(f"uudp: the plugin {says.format(OWNER)}")
        assert not any("canary" in line for line in error)
    assert any("canary" in p.read_text() for p in tmp_path.glob("runs/*/*/private/plugin-errors.log"))


def test_a_plugin_that_cannot_be_used_is_listed_as_such(
    bad: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are listed all the same. Break: the error of one ends the list."""
    monkeypatch.syspath_prepend(str(bad))
    assert main.run_app(["policies", "list"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f'halfway can\'t be used: noise "halfway" {OWNER}' in out
    assert "scale Each group gets its own target" in out
