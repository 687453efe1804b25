"""Plugins by name: built in, installed, or as ``module:attr``; and every way not to find one."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import plugins
from harness.errors import ArgumentError
from harness.plugins import NoisePolicy, Plugin, PluginError, Registry, Segmenter, suggest
from harness.spec import SpecErrors, catalog, load_spec
from tests.plans import Rogue, write_spec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry() -> Registry:
    """A registry of noise policies of its own."""
    made: Registry = Registry("noise", NoisePolicy)
    made.register("mine", "tests.plans:Rogue")
    made.reserve("later")
    return made


def test_every_built_in_plugin_is_found_and_of_its_kind():
    """Break: a line of registration that names a module or a class that is not there."""
    for registry in (plugins.segmentation, plugins.sensitivity, plugins.noise, plugins.source):
        names = list(registry)
        assert names == sorted(names)
        for name in names:
            assert issubclass(registry.get(name), registry.base)
    assert set(plugins.noise) >= {"uniform", "scale", "sample", "none"}
    assert set(plugins.sensitivity) >= {"volume", "identifiers"}
    assert set(plugins.segmentation) >= {
        "attribute",
        "usage",
        "none",
        "length",
        "rule",
        "product",
        "time_of_day",
        "recency",
        "kmeans",
        "mixture",
        "anomaly",
    }
    assert set(plugins.source) >= {"jsonl", "shakespeare", "synthetic"}


def test_registering_imports_nothing():
    """Break: the plugin imported when it is registered."""
    code = (
        "import sys, harness.plugins as p; assert 'usage' in set(p.segmentation);"
        "print([m for m in sys.modules if m.startswith('policies.') and m.count('.') > 1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_name_is_taken_once(registry):
    """Break: the second one wins."""
    with pytest.raises(ValueError, match=r'^noise "mine" is registered twice: tests.plans:Rogue and other:Thing$'):
        registry.register("mine", "other:Thing")
    assert registry.get("mine") is Rogue


def test_a_reserved_name_is_said_to_come(registry):
    """Break: reserved names reported as unknown."""
    with pytest.raises(PluginError, match=r'^noise "later" is not built yet in this version$') as caught:
        registry.get("later")
    assert caught.value.not_built
    assert caught.value.key == ("type",)
    with pytest.raises(PluginError, match="not built yet"):
        plugins.sensitivity.get("secrets")


def test_what_can_not_be_private_is_refused_with_a_reason(registry):
    """However it is written; a plugin of that name wins. Break: its name looked up as it stands, or after unknown."""
    registry.refuse("it leaks", "per_user", "mine")
    for name in ("per_user", "Per-User", "per user"):
        with pytest.raises(PluginError) as caught:
            registry.get(name)
        assert caught.value.message == f'noise "{name}" is refused: it leaks'
        assert (caught.value.key, caught.value.not_built) == (("type",), False)
    assert registry.get("mine") is Rogue
    for name in ("per_user", "additive", "per_user_noise", "individual"):
        with pytest.raises(PluginError, match=r'did you mean "scale" or "risk_proportional"\?$'):
            plugins.noise.get(name)
        with pytest.raises(PluginError, match="is refused"):
            catalog.details(name)
    with pytest.raises(PluginError, match="there is no noise"):
        plugins.noise.get("adaptive")


def test_an_unknown_name_has_candidates(registry):
    """Break: the candidates left out (no "did you mean")."""
    with pytest.raises(PluginError, match=r'^there is no noise "mime"$') as caught:
        registry.get("mime")
    assert (caught.value.candidates, caught.value.key, caught.value.not_built) == (("mine",), ("type",), False)
    assert suggest("mime", caught.value.candidates) == "mine"
    assert suggest("zzz", caught.value.candidates) is None
    with pytest.raises(PluginError, match=r'^there is no noise "zzz" \(there are: mine\)$'):  # where nothing is near
        registry.get("zzz")


def test_a_plugin_by_module_and_attribute(registry):
    """Break: only registered names looked up."""
    assert registry.get("tests.plans:Rogue") is Rogue
    assert isinstance(registry.build("tests.plans:Rogue", {}), Rogue)


@pytest.mark.parametrize(
    "target", ["tests.plans:Gone", "tests.gone:Rogue", "tests.plans:", ":Rogue", ":", "tests.plans:Rogue:more", "..:x"]
)
def test_what_cannot_be_imported_is_said_so_in_one_line(registry, target):
    """Break: one of the kinds of error not caught."""
    with pytest.raises(PluginError, match="can't be imported") as caught:
        registry.get(target)
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.key == ("type",)


@pytest.mark.parametrize("target", ["tests.plans:Trapped", "tests.plans:write_spec", "tests.plans:BASE", "json:loads"])
def test_a_plugin_of_another_kind_is_refused(registry, target):
    """A source for a noise policy, a function, a value. Break: the check of the class taken out."""
    with pytest.raises(PluginError, match="is no noise: it must be a subclass of NoisePolicy"):
        registry.get(target)
    with pytest.raises(PluginError, match="is no segmentation: it must be a subclass of Segmenter"):
        plugins.segmentation.get("tests.plans:Rogue")
    assert not issubclass(Rogue, Segmenter)
    assert issubclass(Rogue, Plugin)


def announce(monkeypatch, *entries):
    points = [importlib.metadata.EntryPoint(name, value, "uudp.noise") for name, value in entries]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [p for p in points if p.group == group])


def test_an_installed_package_announces_a_plugin(registry, monkeypatch):
    """Break: another group than ``uudp.noise``."""
    announce(monkeypatch, ("theirs", "tests.plans:Refusing"), ("mine", "tests.plans:Rogue"))
    assert registry.get("theirs").__name__ == "Refusing"
    assert list(registry) == ["mine", "theirs"]  # the same target twice is no conflict


def test_a_name_that_two_packages_announce_is_refused(registry, monkeypatch):
    """Nobody takes over a built-in policy by being installed; other names go on. Break: the last one wins."""
    announce(monkeypatch, ("mine", "a:B"), ("theirs", "a:B"), ("theirs", "c:D"), ("fine", "tests.plans:Refusing"))
    for name, owner in (("mine", "uudp itself (tests.plans:Rogue)"), ("theirs", "an installed package (a:B)")):
        with pytest.raises(PluginError) as caught:
            registry.get(name)
        assert caught.value.message.startswith(f'noise "{name}" is announced by {owner} and an installed package (')
    assert registry.get("fine").__name__ == "Refusing"


def test_a_spec_with_a_wrong_plugin_is_told_where_and_what_instead(tmp_path):
    """Exit code 2, one line, a suggestion. Break: the suggestion left out."""
    with pytest.raises(
        SpecErrors, match=r'noise\.type: there is no noise "unifrom"; did you mean "uniform"\?'
    ) as caught:
        load_spec(write_spec(tmp_path, noise={"type": "unifrom"}))
    assert isinstance(caught.value, ArgumentError)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SpecErrors, match=r"noise\.type: tests\.plans:Trapped is no noise: it must be a subclass of"):
        load_spec(write_spec(tmp_path, noise={"type": "tests.plans:Trapped"}))


def shadowed(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Runs code in a folder whose own packages come first."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("place", ["policies/__init__.py", "policies.py"])
def test_what_shadows_the_policies_is_named(tmp_path, place):
    """It is not even imported. Break: the comparison of places taken out, or a folder alone looked for."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("raise RuntimeError\n")
    code = (
        "from harness.cli.main import run_app\n"
        "assert [run_app(['validate', 'quickstart']), run_app(['policies'])] == [2, 2]\n"
    )
    done = shadowed(tmp_path, code)
    where = ("the file " if place == "policies.py" else "the folder ") + str(tmp_path / place.split("/")[0])
    expected = f"uudp: {where} shadows uudp's own package `policies`; rename it, or work in another folder"
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [expected] * 2  # once each, not for each block of a spec


def test_a_folder_that_only_shares_the_name_with_nothing_in_it_is_harmless(tmp_path):
    """A folder without ``__init__.py`` is no package beside one that has it. Break: any folder of that name refused."""
    (tmp_path / "policies").mkdir()
    done = shadowed(tmp_path, "from harness.plugins import noise; print(noise.get('uniform').__name__)")
    assert done.stdout.strip() == "Uniform", done.stderr
