"""Noise policies side by side: each is what planning it by itself gives, and no record is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.errors import ArgumentError
from harness.planning import make_plan, noise_to_signal
from harness.planning.comparing import compare, document
from harness.planning.plan import Plan, noise_to_signal_of_run
from harness.privacy.mechanism import GroupMechanism, Mechanism, Stretch
from tests.plans import ATTRIBUTE, merged, write_spec

TARGETS = {"free": 8.0, "paid": 6.0, "other": 5.0}
BLOCKS: dict[str, Any] = {
    "privacy": {"accountant": "rdp"},
    "segmentation": ATTRIBUTE,
    "data": {"weights": {"free": 0.7, "paid": 0.2, "other": 0.1}},
    "noise": {"type": "scale", "epsilon": TARGETS},
    "train": {"steps": 200},
    "sampling": {"expected": 50},
}


def planned(folder: Path, **blocks: Any) -> Plan:
    return make_plan(write_spec(folder, **merged(BLOCKS, blocks)))


def by_name(plan: Plan, *names: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document(plan, compare(plan, names or ("all",)))}


@pytest.mark.parametrize(
    "names",
    [("sample", "participation"), pytest.param(("product", "schedule"), marks=pytest.mark.slow)],
    ids="+".join,
)
def test_each_policy_is_what_planning_it_gives(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The same mechanism to the last digit. Break: other targets, or a budget of its own."""
    found = by_name(planned(tmp_path), *names)
    assert next(iter(found.values()))["kind"] == "spec"
    for name in ("scale", *names):
        alone = planned(tmp_path, noise={"type": name, "epsilon": TARGETS})
        assert found[name]["mechanism_digest"] == alone.mechanism.digest
        assert [g["epsilon"] for g in found[name]["groups"]] == list(alone.guarantee.epsilon or ())
        for group, there in zip(found[name]["groups"], alone.document()["groups"], strict=True):
            assert all(group[key] == there[key] for key in ("clip_norm", "sampling_rate", "steps", "noise_to_signal"))
    for epsilon, name in ((8.0, "uniform at ε = 8"), (5.0, "uniform at ε = 5")):
        alone = planned(tmp_path, noise={"type": "uniform"}, privacy={"epsilon": epsilon})
        assert found[name]["mechanism_digest"] == alone.mechanism.digest


def test_risk_proportional_has_the_same_targets(tmp_path: Path) -> None:
    """By risks that lead to them. Break: risks of its own, or a rounding that makes another mechanism."""
    found = by_name(planned(tmp_path), "risk_proportional")["risk_proportional"]
    assert found["note"] == "the same as scale here"


def test_only_the_loosest_is_what_a_spec_without_the_others_gives(tmp_path: Path) -> None:
    """As many users a step, from fewer; δ stays. Break: the denominator of all, or δ by the smaller number."""
    blocks = merged(BLOCKS, {"data": {"population": "public"}, "sampling": {"expected": 10}})
    blocks["privacy"] = {"accountant": "rdp", "delta": None}  # taken out of what `write_spec` would say
    plan = make_plan(write_spec(tmp_path, **blocks))
    assert plan.guarantee.delta == 1 / 400
    found = by_name(plan, "uniform")["only the loosest"]
    only = {"segmentation": None, "noise": {"type": "uniform"}, "sampling": {"expected": 10}}
    alone = planned(tmp_path, **only, privacy={"delta": 1 / 400}, data={"weights": None, "population": 28})
    kept, *others = found["groups"]
    assert (kept["name"], kept["clip_norm"]) == ("free", pytest.approx(0.5))
    assert kept["sampling_rate"] == pytest.approx(10 / 28)
    assert kept["noise_multiplier"] == pytest.approx(alone.mechanism.noise_multiplier(0))
    assert [(g["epsilon"], g["noise_multiplier"]) for g in others] == [(0.0, None)] * 2
    assert (found["worst"], found["worst_group"]) == (None, "paid")


def test_what_can_not_be_used_is_named_with_the_reason(tmp_path: Path) -> None:
    """Break: it is left out, or ends the whole comparison."""
    found = by_name(planned(tmp_path), "contribution", "none", "tests.plans:Refusing")
    assert found["contribution"]["reason"] == "contribution needs sampling.unit: example"
    assert found["contribution"]["groups"] == []
    assert found["none"]["reason"] == "it adds no noise: nothing is promised to anybody"
    assert found["tests.plans:Refusing"]["reason"] == "these groups are too small"
    far = {"type": "scale", "epsilon": {"free": 8, "paid": 4, "other": 0.1}}
    strict = by_name(planned(tmp_path, noise=far), "participation")
    assert "a single step already costs" in strict["participation"]["reason"]


def test_rates_that_would_follow_from_noisy_counts_are_refused_here_as_well(tmp_path: Path) -> None:
    """Break: `check_lever` left out of the comparison."""
    plan = planned(tmp_path, data={"weights": "noisy"})
    found = by_name(plan, "sample", "participation")
    assert found["sample"]["reason"].startswith("data.weights: noisy does not go with")
    assert found["participation"]["reason"] is None
    assert found["participation"]["overall"] is None  # waits for the answer
    assert found["only the loosest"]["reason"] == "how many users are left waits for a noisy answer"


def test_an_unknown_policy_and_a_spec_without_targets(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r'^compare: there is no noise "sampel"; did you mean "sample"\?$'):
        compare(planned(tmp_path), ["sampel"])
    with pytest.raises(ArgumentError, match=r"^compare: the spec's noise policy protects nobody"):
        compare(planned(tmp_path, noise={"type": "none"}), ["sample"])


def test_the_summary_by_hand(tmp_path: Path) -> None:
    """Break: the worst taken as the least, the mean without weights, or a sum of ratios."""
    one = by_name(planned(tmp_path), "sample")["sample"]
    ratios = [g["noise_to_signal"] for g in one["groups"]]
    assert one["mean"] == pytest.approx(0.7 * ratios[0] + 0.2 * ratios[1] + 0.1 * ratios[2])
    assert one["overall"] == pytest.approx(1 / sum(1 / r for r in ratios))
    assert (one["worst"], one["worst_group"]) == (pytest.approx(ratios[2]), "other")


# --- over the whole run ---------------------------------------------------------------------------------------


def mechanism(*steps: int, schedule: tuple[Stretch, ...] = ()) -> Mechanism:
    groups = tuple(GroupMechanism(f"g{i}", 100.0, 0.1, 0.5, t, 1) for i, t in enumerate(steps))
    return Mechanism(4, 2.0, groups, "add_or_remove", schedule=schedule)


def test_noise_to_signal_of_a_run_by_hand() -> None:
    """Equal steps give the step's own; half the noise in half of them √(5/8); half the steps, with both groups' sum."""
    same = mechanism(4, 4)
    assert noise_to_signal_of_run(same, 0) == pytest.approx(noise_to_signal(same, 0)) == pytest.approx(2 / 5)
    falls = mechanism(4, schedule=(Stretch(2), Stretch(2, noise=0.5)))
    assert noise_to_signal_of_run(falls, 0) == pytest.approx(math.sqrt(5 / 8) * 2 / 5)
    # Steps 0 and 2 have 20 expected users, 1 and 3 only the first group's 10: noise 2/20 and 2/10 of an update.
    part = mechanism(4, 2)
    noise = math.sqrt(2 * 0.1**2 + 2 * 0.2**2) * 2
    assert noise_to_signal_of_run(part, 0) == pytest.approx(noise / (2 * 5 / 20 + 2 * 5 / 10))
    assert noise_to_signal_of_run(part, 1) == pytest.approx(noise / (2 * 5 / 20))


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_compares_without_reading_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its source fails when a text, or the content, is asked for. Break: count the groups in the corpus."""
    monkeypatch.chdir(tmp_path)
    data = {"source": {"type": "tests.plans:Trapped"}, "population": "public", "weights": "public"}
    blocks = merged(BLOCKS, {"data": {"weights": None}, "sampling": {"expected": 4}})
    spec = write_spec(tmp_path, **merged(blocks, {"data": data, "noise": {"type": "scale", "epsilon": TARGETS}}))
    arguments = ["plan", str(spec), "--compare", "sample", "--compare", "scale", "--plot", "noise.html"]
    assert main.run_app([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["comparison"]][:3] == ["scale", "sample", "uniform at ε = 8"]
    assert all(g["reason"].startswith("At most ε = ") for g in found["groups"])
    assert "noise policies compared" in (tmp_path / "noise.html").read_text()
    assert main.run_app([*arguments, "--explain"]) == 0
    out = capsys.readouterr().out
    head = out.partition("resolved spec")[0]
    assert [line for line in head.splitlines() if len(line) > 80] == []
    assert "free: At most ε = 8, the loosest target." in " ".join(head.split())
    assert "uniform at ε = 6" in head
    assert "plot: noise.html" in out


def test_a_plot_needs_a_comparison_and_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = str(write_spec(tmp_path, **BLOCKS))
    assert main.run_app(["plan", spec, "--plot", "x.html"]) == 2
    assert "--plot shows a comparison: add --compare all" in capsys.readouterr().err
    assert main.run_app(["plan", spec, "--compare", "uniform", "--plot", "no/x.html"]) == 4
    assert "no/x.html could not be written" in capsys.readouterr().err
    assert main.run_app(["plan", spec, "--compare", "scael"]) == 2
    assert capsys.readouterr().err == 'uudp: compare: there is no noise "scael"; did you mean "scale"?\n'
    for name in ("", ".", "/", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        assert main.run_app(["plan", spec, "--compare", "uniform", "--plot", name]) == 2
        assert "is no name for a file" in capsys.readouterr().err
