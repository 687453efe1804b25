"""Every ε is computed again from the mechanism: nothing that is changed by hand gets onto the board."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.privacy.mechanism import Mechanism
from harness.reporting.leaderboard.audits import audited, planted_of
from harness.reporting.leaderboard.files import Refused
from harness.reporting.leaderboard.reading import Cell, RunFiles, read_run
from harness.reporting.leaderboard.verifying import Verified, verify
from harness.reporting.report import render
from tests.reporting.leaderboard import made

PLAN, PRIVACY, SPEC, ROWS = "plan.json", "privacy.json", "spec.yaml", "metrics.jsonl"
Documents = dict[str, Any]


def files_of(found: Documents) -> RunFiles:
    return RunFiles(
        "0" * 16,
        found[PLAN],
        found[PRIVACY],
        tuple(found[ROWS]),
        found[SPEC],
        "",
        found.get("sweep.json"),
        found.get("assessment.json"),
        found.get("audit.json"),
    )


def verified(found: Documents, cell: Cell | None = None) -> Verified:
    return verify(files_of(found), cell)


def executed(found: Documents, **changes: Any) -> None:
    """Another mechanism, whose digest and levers all files name, as a careful forger would write them."""
    mechanism = dataclasses.replace(Mechanism.from_dict(found[PRIVACY]["mechanism"]), **changes)
    found[PRIVACY] |= {"mechanism": json.loads(json.dumps(mechanism.to_dict()))}
    for name in (PLAN, PRIVACY):
        found[name]["mechanism_digest"] = mechanism.digest
    found[PLAN] |= {"noise_std": mechanism.noise_std, "denominator": mechanism.denominator(0)}
    for index, (entry, group) in enumerate(zip(found[PLAN]["groups"], mechanism.groups, strict=True)):
        entry |= {
            "noise_multiplier": mechanism.noise_multiplier(index),
            "clip_norm": group.clip_norm,
            "sampling_rate": group.sampling_rate,
            "examples_per_user": group.examples_per_user,
        }


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "chosen" else []) for kind in made.KINDS]
)
def test_every_kind_of_run_is_verified_through_its_files(kind: str, tmp_path: Path) -> None:
    """Whatever a mechanism can do: what planning claimed is what is recomputed, and its report is made of it.

    Break: a search, learnt groups, charges or private hold-out users accounted as if they were not there.
    """
    run = verify(read_run(made.make(tmp_path / kind, kind)))
    plan = made.plan_of(kind)
    assert run.mechanism == plan.mechanism
    assert run.claimed == plan.guarantee.total
    if kind != "none":
        assert run.recomputed is not None
        assert run.recomputed.total == pytest.approx(plan.guarantee.total, rel=1e-5)
        assert run.groups == plan.guarantee.epsilon
        assert run.recomputed.groups == pytest.approx(plan.guarantee.epsilon, rel=1e-5)
    assert not run.overclaims
    privacy = {k: v for k, v in run.record.privacy.items() if k not in ("assumptions", "not_covered")}
    assert privacy == {k: v for k, v in read_run(tmp_path / kind).privacy.items() if k in privacy}
    assert ("NOT PRIVATE" in render(run.record)) is (kind == "none")


def _set(name: str, path: str, value: Any) -> Callable[[Documents], None]:
    keys = [int(k) if k.isdigit() else k for k in path.split(".")]

    def edit(found: Documents) -> None:
        target = found[name]
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    edit.__name__ = f"{name}:{path}={str(value)[:20]}"
    return edit


def _both(path: str, value: Any) -> Callable[[Documents], None]:
    def edit(found: Documents) -> None:
        _set(PLAN, path, value)(found)
        _set(PRIVACY, path, value)(found)

    edit.__name__ = f"both:{path}={value}"
    return edit


EDITS: list[tuple[Callable[[Documents], None], str]] = [
    # what is claimed
    (_set(PRIVACY, "epsilon", 1.0), "state different ε"),
    (_set(PLAN, "epsilon", 1.0), "state different ε"),
    (_both("epsilon", 1.0), "the run claims ε = 1, but what the mechanism gives is 8"),
    (_both("epsilon", 7.9999), "the run claims ε = 7.9999, but"),
    (_both("epsilon", 9.0), "above the spec's budget of 8"),
    (_both("groups.1.epsilon", 0.5), "group paid claims ε = 0.5, but what the mechanism gives is 4"),
    (_both("delta", 1e-9), "δ is not the spec's"),
    (_both("delta", 0.5), "δ is not the spec's"),
    (_set(PRIVACY, "statement", "It is private with ε = 0.10."), "the statement in privacy.json names another ε"),
    (_set(PRIVACY, "statement", ""), "makes no statement"),
    (_set(PRIVACY, "private", False), "says something else about privacy"),
    (_set(PRIVACY, "private", 1), "says something else about privacy"),
    (_set(PRIVACY, "any_group", True), "contradict each other"),
    (_set(PRIVACY, "adjacency", "one record"), "adjacency of privacy.json does not go with its mechanism"),
    (_set(PRIVACY, "unit", "example"), "unit of privacy.json"),
    (_both("accountant", "pld"), "the accountant that answers is rdp"),
    (_set(SPEC, "privacy.accountant", "none"), "spec.yaml is not the spec that plan.json holds"),
    # numbers that are none
    *[
        (_both("epsilon", value), "ε and δ must be finite numbers that are not negative")
        for value in (None, "8", True, -1.0, [], math.inf, math.nan)
    ],
    # the mechanism
    (_set(PRIVACY, "mechanism", None), "does not hold the mechanism"),
    (_set(PRIVACY, "mechanism", []), "mechanism: expected an object"),
    (_set(PRIVACY, "mechanism.steps", 11), "another mechanism_digest"),
    (_set(PRIVACY, "mechanism.noise_std", 100.0), "another mechanism_digest"),
    (_set(PRIVACY, "mechanism.groups.0.sampling_rate", 0.001), "another mechanism_digest"),
    (_set(PRIVACY, "mechanism.groups.0.clip_norm", None), "noise without a clip norm"),
    *[
        (_set(PRIVACY, f"mechanism.{path}", value), problem)
        for path, value, problem in [
            ("steps", 10.0, "expected a finite whole number"),
            ("steps", True, "expected a finite whole number"),
            ("steps", "10", "expected a finite whole number"),
            ("steps", -10, "the mechanism is none"),
            ("steps", 10**14, "beyond what a spec can ask for"),
            ("noise_std", math.nan, "expected a finite number"),
            ("noise_std", math.inf, "expected a finite number"),
            ("noise_std", -1.0, "the mechanism is none"),
            ("noise_std", "1", "expected a finite number"),
            ("noise_std", False, "expected a finite number"),
            ("groups", [], "needs at least one group"),
            ("groups", {}, "expected a list"),
            ("groups.0.name", "paid", "two groups of the same name"),
            ("groups.0.users", 10**20, "expected a finite number"),
            ("groups.0.users", 1e12, "beyond what a spec can ask for"),
            ("groups.0.sampling_rate", 1.5, "the mechanism is none"),
            ("groups.0.steps", 11, "exceeds the run's"),
            ("groups.0.canaries", -1, "the mechanism is none"),
            ("groups.0.name", 7, "expected a text"),
            ("relation", "replace_one", "expected one of"),
            ("sampling_unit", ["user"], "expected one of"),
            ("holdout", {"what": "x"}, "noise_multiplier is missing"),
            ("extra", 1, "there are keys that it does not have"),
        ]
    ],
    (_set(PRIVACY, "mechanism_digest", "0" * 64), "privacy.json names another mechanism_digest"),
    (_set(PLAN, "mechanism_digest", None), "plan.json names another mechanism_digest"),
    # the plan
    (_set(PLAN, "steps", 9), "steps of plan.json"),
    (_set(PLAN, "noise_std", 9.0), "noise_std of plan.json"),
    (_set(PLAN, "denominator", 2000.0), "denominator of plan.json"),
    (_set(PLAN, "relation", "zero_out"), "relation of plan.json"),
    (_set(PLAN, "sampling.unit", "example"), "sampling.unit of plan.json"),
    (_set(PLAN, "schedule", [{"steps": 10, "noise": 9.0, "clip": 1.0}]), "schedule of plan.json"),
    (_set(PLAN, "clipping.quantile", 0.5), "clipping of plan.json"),
    (_set(PLAN, "train.steps", 1), "train.steps of plan.json"),
    (_set(PLAN, "holdout", {"noise_multiplier": 1.0, "evaluations": 1}), "holdout of plan.json"),
    (_set(PLAN, "population.users", 10**6), "population.users"),
    (_set(PLAN, "groups.0.name", "others"), "other groups than the mechanism"),
    *[
        (_set(PLAN, f"groups.1.{key}", 0.123), f"{key} of group paid in plan.json is not the mechanism's")
        for key in ("noise_multiplier", "clip_norm", "sampling_rate", "steps", "examples_per_user", "weight")
    ],
    (_set(PLAN, "groups.1.target_epsilon", 1.0), "ε of group paid is above its target"),
    (_set(PLAN, "groups.1.target_epsilon", None), "ε of group paid is above its target"),
    (_set(PLAN, "pending", ["data.population"]), "waits for noisy answers"),
    (_set(PLAN, "private", None), "plan.json says something else about privacy"),
    (_set(PLAN, "extrapolated", True), "says that the result is extrapolated"),
    (_set(PRIVACY, "emulated", {"users": 10**9}), "says that the result is extrapolated"),
    # whether it is finished
    (_set(PRIVACY, "status", "running"), "its status is 'running', not finished"),
    (_set(PRIVACY, "status", None), "its status is None, not finished"),
    (_set(PRIVACY, "steps_completed", 9), "9 steps were made; its mechanism has 10"),
    (_set(PRIVACY, "steps_completed", 11), "11 steps were made; its mechanism has 10"),
    (_set(PRIVACY, "steps_completed", True), "steps were made"),
    (_set(ROWS, "1.step", 11), "metrics.jsonl has step 11"),
    (_set(ROWS, "1.step", None), "has no step"),
    (_set(ROWS, "1.eval/loss", "4"), "a loss in metrics.jsonl is no number"),
    (_set(ROWS, "1.eval/loss/paid", -1e9), "a loss in metrics.jsonl is no number"),
    # the spec and the rest
    (_set(SPEC, "train.steps", 1), "spec.yaml is not the spec that plan.json holds"),
    (_set(PLAN, "spec.train.steps", 1), "spec.yaml is not the spec that plan.json holds"),
    (_set(PRIVACY, "data.name", "public texts"), "another data set than the spec"),
    (_set(PRIVACY, "data.visibility", "public"), "visibility of the data"),
    (_set(PRIVACY, "holdout.fraction", 0.0), "another fraction of hold-out users"),
    (_set(PRIVACY, "holdout.visibility", "private"), "hold-out users"),
    (_set(PRIVACY, "charges", [{"what": "x", "noise_multiplier": 1.0, "count": 1}]), "charges of privacy.json"),
    (_set(PRIVACY, "ledger", {"url": "x"}), "ledger: data_set is missing"),
    (_set(PRIVACY, "computational", False), "computational of privacy.json"),
    (_set(PRIVACY, "groups", "both"), "privacy.json has other groups"),
]


@pytest.mark.parametrize(("edit", "reason"), EDITS, ids=lambda v: getattr(v, "__name__", ""))
def test_what_is_manipulated_is_refused_in_one_line(edit: Callable[[Documents], None], reason: str) -> None:
    """Break: any one check left out of verifying, consistency or recomputing."""
    found = made.documents("scale")
    edit(found)
    with pytest.raises(Refused) as refused:
        verified(found)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("lower", [2.0, 1.01, 1.0001])
def test_a_careful_forger_states_another_mechanism_everywhere(lower: float) -> None:
    """Less noise than is claimed, in all files and with a right digest. Break: ε not recomputed."""
    found = made.documents("scale")
    executed(found, noise_std=Mechanism.from_dict(found[PRIVACY]["mechanism"]).noise_std / lower)
    with pytest.raises(Refused, match=r"group free claims ε = 8, but what the mechanism gives is"):
        verified(found)


def test_more_noise_than_is_claimed_is_shown_and_not_refused() -> None:
    """Nobody is harmed by it. Break: the difference not shown."""
    found = made.documents("scale")
    executed(found, noise_std=Mechanism.from_dict(found[PRIVACY]["mechanism"]).noise_std * 1.5)
    run = verified(found)
    assert run.overclaims
    assert run.recomputed is not None
    assert run.recomputed.total < 7
    assert (run.claimed or 0.0) > 7.9


def test_a_spec_with_other_numbers() -> None:
    """Both copies of the spec changed. Break: the spec not compared with the mechanism."""
    changes = [
        ("train.steps", 20, "train.steps of the spec"),
        ("privacy.epsilon", 4.0, "above the spec's budget of 4"),
        ("privacy.delta", 1e-6, "δ is not the spec's"),
        ("privacy.delta", None, "the spec states no δ"),
        ("privacy.accountant", "other", "names no accountant"),
        ("noise.type", "none", "noise.type of the spec"),
        ("sampling.unit", "example", "sampling.unit of the spec"),
        ("name", "another", "another name than the spec"),
        ("data.holdout.visibility", "private", "hold-out users"),
    ]
    for path, value, reason in changes:
        found = made.documents("scale")
        for name in ((SPEC, path), (PLAN, f"spec.{path}")):
            _set(*name, value)(found)
        with pytest.raises(Refused) as refused:
            verified(found)
        assert reason in str(refused.value), path


def test_a_delta_that_promises_nothing() -> None:
    """δ of a thousandth for a thousand users: publishing one of them whole would keep it."""
    found = made.documents("rdp", privacy={"delta": 0.002})
    with pytest.raises(Refused, match="promises nothing"):
        verified(found)


# --- searches, learnt groups, hold-out users, no privacy ----------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("search", None, "states no search"),
        ("search.mean", 1.0, "another search"),
        ("search.law", "logarithmic", "another search"),
        ("search.law", "best", "expected a law"),
        ("search.law", [], "expected a law"),
        ("search.mean", math.nan, "expected a law"),
        ("search.mean", 50.0, "another search"),
        ("search.shape", 2.0, "another search"),
        ("search.orders", [1.0], "expected orders"),
        ("search.curves", [], "expected one for each"),
        ("search.curves.0", [None], "one value for each order|must have numbers"),
        ("search.holdout", {}, "expected all orders"),
    ],
)
def test_the_price_of_a_search_follows_from_its_curves(path: str, value: Any, reason: str) -> None:
    """Break: the winner's own ε taken for the price, or its own curve not held against the search's."""
    found = made.documents("search")
    _set(PRIVACY, path, value)(found)
    with pytest.raises(Refused, match=reason):
        verified(found)


def test_more_trials_than_are_priced() -> None:
    """Both files name 50 trials for curves that were made for 5. Break: the price not computed again."""
    found = made.documents("search")
    found[PRIVACY]["search"]["mean"] = found["sweep.json"]["trials"]["mean"] = 50.0
    with pytest.raises(Refused, match=r"group free claims ε = 8, but what the mechanism gives is 1"):
        verified(found)


def test_a_trial_that_is_not_under_its_curve() -> None:
    """Smaller curves would make the search look cheaper. Break: the trial's own curve not compared."""
    found = made.documents("search")
    curves = found[PRIVACY]["search"]["curves"]
    found[PRIVACY]["search"]["curves"] = [[v and v * 0.9 for v in curve] for curve in curves]
    with pytest.raises(Refused, match="what the mechanism gives is infinite"):
        verified(found)


def test_learnt_groups_claim_no_less_than_what_dominates_them() -> None:
    """Break: the maximum over groups taken where which group a user is in follows from noisy answers."""
    found = made.documents("learnt")
    mechanism = Mechanism.from_dict(found[PRIVACY]["mechanism"])
    rates = tuple(
        dataclasses.replace(g, sampling_rate=g.sampling_rate * (1.5 if g.name == "paid" else 1.0))
        for g in mechanism.groups
    )
    executed(found, groups=rates)
    for document in (found[PLAN], found[PRIVACY]):
        document["groups"][1]["epsilon"] = 7.9
    with pytest.raises(Refused, match="the run claims ε = 8, but what the mechanism gives is"):
        verified(found)


def test_private_hold_out_users_are_recomputed_too() -> None:
    """Break: their evaluations left out."""
    found = made.documents("noisy")
    found[PRIVACY]["holdout"]["epsilon"] = 1.0
    with pytest.raises(Refused, match=r"hold-out users are told ε = 1, but what the mechanism gives is 8"):
        verified(found)


def test_a_run_without_noise_claims_nothing() -> None:
    """Break: an ε beside a mechanism without noise believed."""
    for edit in (
        _set(PRIVACY, "epsilon", 1.0),
        _set(PLAN, "groups.0.epsilon", 1.0),
        _set(PRIVACY, "groups.0.epsilon", 2.0),
    ):
        found = made.documents("none")
        edit(found)
        with pytest.raises(Refused, match="claimed without noise"):
            verified(found)
    assert verified(made.documents("none")).claimed is None


# --- what a suite says, audits ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "seed", "reason"),
    [(8.0, None, ""), (None, None, ""), (4.0, None, "above its cell's budget of 4"), (8.0, 99, "another seed")],
)
def test_a_run_keeps_to_its_cell(budget: float | None, seed: int | None, reason: str) -> None:
    """Break: a run of ε 8 shown at a budget of 4."""
    cell = Cell("s", "d", "p", budget, seed, "run")
    if not reason:
        verified(made.documents("scale"), cell)
        return
    with pytest.raises(Refused, match=reason):
        verified(made.documents("scale"), cell)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "consistent"),
        ({"right": 1.0}, "violated"),
        ({"verdict": "violated"}, "violated"),
        ({"canaries": 100}, "inconclusive"),
        ({"verdict": "inconclusive"}, "inconclusive"),
        ({"one_run": []}, None),
        ({"one_run": None}, None),
    ],
)
def test_an_audit_is_judged_by_its_numbers(changes: dict[str, Any], verdict: str | None) -> None:
    """A bound above the claim is a violation whatever the file calls it. Break: the file's word taken."""
    found = made.documents("scale")
    found["audit.json"] = made.audit(found[PRIVACY]["epsilon"], **changes)
    run = verified(found)
    assert run.audit is not None
    assert run.audit.verdict == verdict


@pytest.mark.parametrize(
    ("kind", "right", "verdict"),
    [("scale", 0.995, "violated"), ("scale", 0.9, "consistent"), ("learnt", 0.995, "inconclusive")],
)
def test_a_group_is_judged_by_its_own_claim(kind: str, right: float, verdict: str) -> None:
    """paid is promised ε = 4, and 5 is measured of it. Break: compared with the ε of the run, which is 8."""
    found = made.documents(kind)
    found["audit.json"] = made.audit(found[PRIVACY]["epsilon"], right=right, canaries=10_000)
    found["audit.json"]["one_run"][0]["group"] = "paid"
    run = verified(found)
    assert run.audit is not None
    assert run.audit.verdict == verdict


def test_a_group_that_can_not_reach_its_claim_says_nothing_of_another() -> None:
    """Break: the largest ceiling of all tests compared with the ε of the run."""
    found = made.documents("scale")
    found["audit.json"] = made.audit(found[PRIVACY]["epsilon"], canaries=10_000)
    found["audit.json"]["one_run"][0]["group"] = "paid"
    audit = verified(found).audit
    assert audit is not None
    assert (audit.verdict, audit.ceiling > 4) == ("consistent", True)


@pytest.mark.parametrize("group", ["nobody", 1, ["paid"]])
def test_a_test_of_a_group_that_is_not_there(group: Any) -> None:
    found = made.documents("scale")
    found["audit.json"] = made.audit(found[PRIVACY]["epsilon"])
    found["audit.json"]["one_run"][0]["group"] = group
    with pytest.raises(Refused, match="a group that the run does not have"):
        verified(found)


def test_the_report_shows_what_attacks_measured_with_our_verdict() -> None:
    """Break: a site whose reports know nothing of audits, or take the file's word."""
    found = made.documents("scale")
    found["audit.json"] = made.audit(found[PRIVACY]["epsilon"], right=1.0)
    record = verified(found).record
    assert record.audit["verdict"] == "violated"
    assert "Nothing was found above what is claimed" not in render(record)
    assert "The claim is refuted" in render(record)


@pytest.mark.parametrize("loss", [-3.0, -1e-9])
def test_a_loss_below_zero_is_none(loss: float) -> None:
    """A probability is never above one. Break: it leads the board. With noise it may fall below zero."""
    found = made.documents("scale", loss=loss)
    with pytest.raises(Refused, match="below zero"):
        verified(found)
    assert verified(made.documents("noisy", loss=loss)).private


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "no known version"),
        ({"claimed": 3.0}, "another ε"),
        ({"claimed": None}, "another ε"),
        ({"delta": 1e-9}, "another δ"),
        ({"verdict": "passed"}, "no known verdict"),
        ({"one_run": "none"}, "list of tests"),
        ({"one_run": [1]}, "list of tests"),
    ],
)
def test_a_damaged_audit(changes: dict[str, Any], reason: str) -> None:
    found = made.documents("scale")
    found["audit.json"] = made.audit(**{"claimed": found[PRIVACY]["epsilon"], **changes})
    with pytest.raises(Refused, match=reason):
        verified(found)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("bound", 0.1, "does not follow"),
        ("bound", 7.9, "does not follow"),
        ("bound", "1", "lacks a number"),
        ("bound", None, "lacks a number"),
        ("ceiling", 12.0, "does not follow"),
        ("correct", 13_000, "does not follow"),
        ("correct", 20_001, "more right guesses"),
        ("correct", 12_000.0, "lacks a number"),
        ("canaries", 100, "more right guesses"),
        ("canaries", 10**9, "more right guesses"),
        ("confidence", 1.0, "confidence that is none"),
        ("confidence", 0.5, "does not follow"),
    ],
)
def test_a_bound_follows_from_its_guesses(key: str, value: Any, reason: str) -> None:
    """What is not so is refused. Break: the file's own bound taken."""
    found = made.documents("scale")
    found["audit.json"] = made.audit(found[PRIVACY]["epsilon"])
    found["audit.json"]["one_run"][0][key] = value
    with pytest.raises(Refused, match=reason):
        verified(found)


# --- any single change --------------------------------------------------------------------------------------


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all numbers in a document."""
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [path]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in pairs for found in _numbers(inner, (*path, key))]


KEPT = ("mechanism", "epsilon", "delta", "groups", "holdout", "charges", "search", "steps_completed")


@pytest.mark.parametrize("kind", ["scale", "examples", "noisy", "search", "learnt", "adaptive", "schedule"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_changed_number_is_noticed_or_harmless(kind: str, data: st.DataObject) -> None:
    """A single number of privacy.json changed in any way: refused, or what is claimed still covers the mechanism.

    Break: any number that ε follows from read from one place and not compared with another.
    """
    found = made.documents(kind)
    whole = copy.deepcopy(found[PRIVACY])
    paths = [path for path in _numbers(whole) if path[0] in KEPT]
    path = data.draw(st.sampled_from(paths))
    target = found[PRIVACY]
    for key in path[:-1]:
        target = target[key]
    value = target[path[-1]]
    factor = st.sampled_from([0.0, 0.01, 0.5, 0.999, 1.001, 2.0, 100.0, -1.0, 1e300])
    changed = data.draw(factor) * value if data.draw(st.booleans()) else data.draw(st.floats())
    target[path[-1]] = int(changed) if isinstance(value, int) and math.isfinite(changed) else changed
    try:
        run = verified(found)
    except Refused:
        return
    assert run.mechanism == made.plan_of(kind).mechanism
    assert run.recomputed is not None
    assert run.claimed is not None
    assert run.recomputed.total <= run.claimed * (1 + 1e-6)
    assert run.claimed == pytest.approx(whole["epsilon"], rel=1e-6)


def test_no_page_shows_an_epsilon_that_nobody_computed_again() -> None:
    """In the curve, the metrics, the notes, the ledger and what is declared public. Break: keep any of them."""
    found = made.documents("rdp")
    last = found["plan.json"]["steps"]
    found["plan.json"]["epsilon_by_step"] = [[0, 0.0], [last, 0.03217]]
    found["plan.json"]["notes"] = ["in truth ε = 0.03217"]
    found["plan.json"]["ledger"] = {"url": "x", "remaining_epsilon": 0.03217, "budget": 0.03217}
    found[PRIVACY]["assumptions"].append("Declared public: nothing; the privacy of this run is ε = 0.03217.")
    for row in found["metrics.jsonl"]:
        row["epsilon"] = 0.03217
    run = verified(found)
    page = render(run.record)
    assert "0.032" not in page
    assert "8.00" in page


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda f: f["plan.json"]["groups"][0].update(target_epsilon=77.0), "above the spec's budget"),
        (lambda f: f["metrics.jsonl"][-1].update(extrapolated=True), "metrics.jsonl says that"),
        (
            lambda f: f.update({"audit.json": made.audit(8.0, emulated=True)}),
            "audit.json says that",
        ),
    ],
)
def test_marks_and_targets_are_looked_for_everywhere(edit: Callable[[Documents], None], reason: str) -> None:
    """Break: look into plan.json and privacy.json alone, or take any target."""
    found = made.documents("rdp")
    edit(found)
    with pytest.raises(Refused, match=reason):
        verified(found)


def test_an_audit_has_no_more_canaries_than_the_mechanism() -> None:
    """Another run's audit would say that this one is sound. Break: believe the number of canaries."""
    plan = made.plan_of("rdp", audit={"one_run": {"canaries": 100}})
    assert sum(planted_of(plan.mechanism).values()) == 100
    document = made.audit(8.0, canaries=100)
    assert audited(document, 8.0, 1e-5, {}, planted_of(plan.mechanism)) is not None
    with pytest.raises(Refused, match="more canaries than the mechanism counts"):
        audited(made.audit(8.0, canaries=101), 8.0, 1e-5, {}, planted_of(plan.mechanism))
