"""The page of each plugin: made from the plugin, up to date, and what ``uudp policies show`` prints."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness.cli import main
from harness.planning.levers import BUDGET, NAMES, RISKS, STRENGTH, LeverCurves, levers_by_risk
from harness.plugins import Group, Lever, NoisePolicy, Page, PluginError, Proposal, noise
from harness.spec import catalog, pages

ROOT = Path(__file__).resolve().parents[2]
ALL = [(kind, name) for kind in pages.KINDS for name in catalog.KINDS[kind]]
LEVERS = "\n## Levers against risk\n"
QUICK = ("uniform", "scale", "risk_proportional", "participation", "none")
"""Whose calibration takes a moment; the others' plots are compared by the slow test."""


def read(kind: str, name: str) -> str:
    return (pages.folder() / kind / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("pages_script", ROOT / "scripts" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_pages_are_up_to_date(kind: str, name: str) -> None:
    """But for the plots, which the next tests compare. Break: a docstring, a parameter or a `Page` changed."""
    (entry,) = catalog.details(f"{kind}/{name}")
    made = pages.render(entry, catalog.KINDS[kind].get(name).page)
    assert read(kind, name).partition(LEVERS)[0].rstrip("\n") == made.rstrip("\n"), "run python scripts/pages.py"


@pytest.mark.parametrize("name", QUICK)
def test_quick_plots_are_up_to_date(script: Any, name: str) -> None:
    """Text and drawing. Break: another budget in `harness.planning.levers`."""
    for place, text in script.files("noise", name, levers_by_risk(noise.get(name))):
        assert (pages.folder() / place).read_text(encoding="utf-8") == text, "run python scripts/pages.py"


@pytest.mark.slow
def test_all_pages_are_up_to_date_and_none_is_left_over() -> None:
    """Break: a page deleted, or one of a plugin that is gone left there."""
    done = subprocess.run(
        [sys.executable, "scripts/pages.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_names_what_is_stale_missing_or_left_over(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break: compare names alone."""
    monkeypatch.setattr(script, "made", lambda names: iter([("noise/a.md", "new\n"), ("noise/b.md", "same\n")]))
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "a.md").write_text("old\n")
    (tmp_path / "noise" / "gone.md").write_text("")
    monkeypatch.setattr(sys, "argv", ["pages.py", "--check", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"stale: noise/a\.md, noise/b\.md, noise/gone\.md: run python"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["pages.py", "--folder", str(tmp_path)])
    script.main()
    assert {p.name: p.read_text() for p in (tmp_path / "noise").iterdir()} == {"a.md": "new\n", "b.md": "same\n"}


def test_every_page_says_what_it_must() -> None:
    """Break: a built-in plugin without a `Page`."""
    for kind, name in ALL:
        text = read(kind, name)
        assert max(map(len, text.splitlines())) <= 80
        wanted = ["When to use it", "What it costs", "In a spec", "Parameters"]
        wanted += {"noise": ["Formula"], "segmentation": ["What it sees"], "sensitivity": ["What 0 and 1 mean"]}[kind]
        wanted += ["Levers against risk"] if kind == "noise" and name != "none" else []
        assert [heading for heading in wanted if f"\n## {heading}\n" not in text] == [], (kind, name)
        assert (pages.folder() / kind / f"{name}.svg").exists() == (LEVERS in text)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_the_example_of_a_page_can_be_built(kind: str, name: str) -> None:
    """Break: a parameter of an example misspelt."""
    import yaml

    (block,) = re.findall(r"```yaml\n(.*?)```", read(kind, name), flags=re.DOTALL)
    found = yaml.safe_load(block)[kind]
    found = found["scores"][0] if kind == "sensitivity" else found
    assert found.pop("type") == name
    if "…" not in block:
        catalog.KINDS[kind].build(name, found)


# --- levers ---------------------------------------------------------------------------------------------------

MOVED = {
    "uniform": [], "scale": ["clip_norm"], "sample": ["sampling_rate"], "product": ["clip_norm", "sampling_rate"],
    "participation": ["steps"], "contribution": ["examples_per_user"], "schedule": ["clip_norm"],
    "risk_proportional": ["clip_norm"],
}  # fmt: skip


def rows(name: str) -> dict[str, list[float]]:
    """The numbers of a page's plot, by lever."""
    table = read("noise", name).partition(LEVERS)[2]
    found = {}
    for key, title in NAMES.items():
        if match := re.search(rf"^{re.escape(title)} +(.*?)   \S+$", table, flags=re.MULTILINE):
            found[key] = [float(cell) for cell in match[1].split()]
    return found


@pytest.mark.parametrize("name", MOVED)
def test_levers_move_one_way_with_risk(name: str) -> None:
    """The policy's own falls, the noise never does, all others stay. Break: risk turned round, or another lever."""
    found = rows(name)
    assert ("examples_per_user" in found) == (name == "contribution")
    for key, values in found.items():
        assert len(values) == len(RISKS)
        rises = key == "noise_multiplier" and "clip_norm" in MOVED[name]
        if key in MOVED[name]:
            assert all(a > b for a, b in pairwise(values)), key
        elif rises:
            assert all(a < b for a, b in pairwise(values)), key
        else:
            assert len(set(values)) == 1, key


def test_levers_are_those_of_the_calibration() -> None:
    """σ_p of `scale` at risk ½ is the multiplier of its target. Break: curves drawn by a formula."""
    from harness.planning.levers import COHORT, DELTA, STEPS, USERS
    from harness.privacy.calibration import noise_multiplier
    from harness.privacy.exposure import Exposure

    curves = levers_by_risk(noise.get("scale"))
    assert curves is not None
    exposure = Exposure(COHORT / USERS, STEPS, DELTA)
    sigma = noise_multiplier(BUDGET / (1 + STRENGTH * 0.5), exposure)
    assert curves.levers["noise_multiplier"][2] == pytest.approx(sigma, rel=1e-9)
    assert math.fsum(curves.levers["clip_norm"]) / len(RISKS) == pytest.approx(0.5)


def test_bars_run_from_the_least_to_the_largest() -> None:
    curves = LeverCurves((8, 4, 4, 4, 2), {"steps": (5.0, 4.0, 3.0, 2.0, 1.0)}, False, ((1.0, 1.0), (0.5, 1.0)))
    lines = curves.lines()
    assert lines[2].endswith(" 5        4        3        2        1   █▆▅▃▁")
    assert lines[-2:] == [
        "during the run, noise as multiples of the first step's, in equal parts:", "  1.00 0.50  █▁"
    ]  # fmt: skip


# --- the literal reading --------------------------------------------------------------------------------------


def test_what_a_hundredth_more_variance_tells() -> None:
    """d / 2 · (r − 1 − ln r) at d = 10⁶ and r = 1.01, and by a sum over coordinates. Break: r and 1 / r swapped."""
    d, r = 10**6, 1.01
    nats = d / 2 * (r - 1 - math.log(r))
    assert f"{nats:.1f}" == "24.8"
    # KL(N(0, r) ‖ N(0, 1)) of one coordinate, by a Riemann sum over ±12 standard deviations.
    step, std = 1e-3, math.sqrt(r)
    points = [k * step for k in range(-12000, 12001)]
    density = [math.exp(-x * x / (2 * r)) / (std * math.sqrt(2 * math.pi)) for x in points]
    one = sum(p * (-x * x / (2 * r) - math.log(std) + x * x / 2) for p, x in zip(density, points, strict=True)) * step
    assert d * one == pytest.approx(nats, rel=1e-4)
    text = " ".join(read("noise", "scale").split())
    assert "With d = 10⁶ parameters and r = 1.01, a hundredth more variance, that is 24.8 nats in one step" in text


# --- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_show_prints_the_page(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Break: the page laid out anew where there is no terminal."""
    assert main.run_app(["policies", "show", f"{kind}/{name}"]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{read(kind, name)}")


def test_show_as_json_has_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(["policies", "show", "scale", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["plugins"]
    assert found["page"] == read("noise", "scale")
    assert {"docstring", "parameters", "defined", "summary"} <= set(found)


class Halved(NoisePolicy):
    """Gives everybody half the budget.

    For tests of other people's plugins.
    """

    def propose(self, groups: Any, epsilon: float) -> Proposal:
        return Proposal({g.name: epsilon / 2 for g in groups}, Lever.CLIP_NORM)


class Failing(Halved):
    """Refuses everything."""

    page: ClassVar[Page] = Page(when="Never.")

    def propose(self, groups: Any, epsilon: float) -> Proposal:
        assert isinstance(groups[0], Group)
        raise PluginError("no")


def test_other_peoples_plugins_get_the_same_from_their_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    """With the plot of their levers. Break: pages of built-in plugins alone, or a failing policy ends the page."""
    assert main.run_app(["policies", "show", f"{__name__}:Halved"]) == 0
    out = capsys.readouterr().out
    assert f"# noise: {__name__}:Halved\n\nGives everybody half the budget.\n" in out
    assert "\nFor tests of other people's plugins.\n" in out
    assert "target ε                    4        4        4        4        4   ▄▄▄▄▄" in out
    assert ".svg" not in out
    assert main.run_app(["policies", "show", f"{__name__}:Failing"]) == 0
    out = capsys.readouterr().out
    assert "## When to use it\n\nNever.\n" in out
    assert "Levers against risk" not in out


def test_the_command_needs_no_drawing_library() -> None:
    """Break: matplotlib, or the report's charts, imported where a page is shown."""
    code = (
        "import sys; from harness.cli import main; main.run_app(['policies', 'show', 'scale']);"
        "heavy = {'matplotlib', 'torch', 'ray', 'harness.planning'};"
        "bad = [m for m in sys.modules if m in heavy];"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
