"""Plans of scores that learn: everything that may be asked is charged, once, and one ε is claimed for all groups."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant

from harness.cli.plan import describe
from harness.errors import ArgumentError, BudgetError
from harness.planning import make_plan, settle
from harness.planning.learners import cuts, learners
from harness.reporting.reasons import explained
from harness.running import answers
from harness.spec.problems import SpecErrors
from tests.plans import write_spec

RARITY: dict[str, Any] = {"type": "rarity", "buckets": 256, "most": 8, "noise_multiplier": 3.0}
SOMEBODYS: dict[str, Any] = {"type": "tests.data.scores:Learner", "noise": 5.0}
QUANTILES: dict[str, Any] = {"quantiles": [0.5, 0.9], "names": ["low", "mid", "high"]}
WEIGHTS = {"low": 0.5, "mid": 0.4, "high": 0.1}
PER_TIER = {"type": "scale", "epsilon": {"low": 8, "mid": 6, "high": 4}}


def planned(folder, scores=(RARITY,), tiers=None, **changes):
    block = {"scores": list(scores), "tiers": tiers or QUANTILES}
    given = {"noise": PER_TIER, "data": {"weights": WEIGHTS}} | changes
    return make_plan(write_spec(folder, sensitivity=block, **given))


def test_everything_that_may_be_asked_is_charged_once(tmp_path):
    """Scores, edges and the harness's own questions. Break: one of them left out of `questions`, or charged twice."""
    plan = planned(
        tmp_path,
        (RARITY, SOMEBODYS, RARITY | {"size": 2}, {"type": "volume"}),
        data={"weights": "noisy"},
        privacy={"session": {"noise_multiplier": 20.0}},
    )
    assert [(c.what, c.noise_multiplier, c.count) for c in plan.mechanism.charges] == [
        ("users per group", 20.0, 1),
        ("sensitivity.rarity (1): users per bucket", 3.0, 1),
        ("sensitivity.tests.data.scores:Learner: median", 5.0, 1),
        ("sensitivity.tests.data.scores:Learner: users", 5.0, 1),
        ("sensitivity.rarity (3): users per bucket", 3.0, 1),
        ("sensitivity.tiers: quantile 0.5", 20.0, 1),
        ("sensitivity.tiers: quantile 0.9", 20.0, 1),
    ]
    asked = [query for one in learners(plan.basis) for query in one.queries] + list(cuts(plan.basis))
    assert len(asked) == len(plan.mechanism.charges) - 1
    document = plan.document()
    assert [c["what"] for c in document["charges"]] == [c.what for c in plan.mechanism.charges]
    assert document["pending"] == ["data.weights", "sensitivity.tiers.edges"]
    assert document["tiers"] == {
        "names": ["low", "mid", "high"], "edges": None, "from": "noisy", "quantiles": [0.5, 0.9]
    }  # fmt: skip


def test_the_claimed_epsilon_is_that_of_all_declared_queries_and_the_most_exposed_group(tmp_path):
    """By hand, with dp-accounting alone: a Gaussian per query, and the least noise at the highest rate.

    Break: the charge of a query, or of a quantile, left out of the event; each group's own ε claimed.
    """
    plan = planned(tmp_path, (RARITY, SOMEBODYS))
    mechanism = plan.mechanism
    noise = [3.0, 5.0, 5.0, 30.0, 30.0]
    sigma = min(mechanism.noise_multiplier(i) for i in range(3))
    rate = max(g.sampling_rate for g in mechanism.groups)
    accountant = PLDAccountant()
    for one in noise:
        accountant.compose(dp_event.GaussianDpEvent(one))
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    accountant.compose(dp_event.SelfComposedDpEvent(step, mechanism.steps))
    assert plan.guarantee.largest is not None
    assert plan.guarantee.total == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert plan.guarantee.total <= 8 * (1 + 1e-9)
    assert "only that one ε is claimed" in plan.guarantee.statement()
    trained = PLDAccountant().compose(dp_event.SelfComposedDpEvent(step, mechanism.steps)).get_epsilon(1e-5)
    assert trained < plan.guarantee.total - 0.05  # the charges take part


@pytest.mark.parametrize("tiers", [QUANTILES, {"edges": [0.2, 0.6], "names": ["low", "mid", "high"]}])
@pytest.mark.parametrize("score", [RARITY, {"type": "volume"}])
def test_one_epsilon_is_claimed_wherever_groups_follow_from_answers(score, tiers, tmp_path):
    """Break: quantiles of own-records scores, or learned scores with public edges, taken for own-records groups."""
    learnt = score is RARITY or tiers is QUANTILES
    plan = planned(tmp_path, (score,), tiers)
    assert (plan.guarantee.largest is not None) == learnt
    assert plan.asked.pending == learnt
    assert plan.guarantee.own_records


def test_the_settled_plan_has_the_edges_and_costs_what_was_reserved(tmp_path):
    """Break: the edges lost by `settle`; another charge accepted."""
    plan = planned(tmp_path)
    after = settle(plan, plan.population, None, (0.25, 0.5))
    assert after.edges == (0.25, 0.5)
    assert after.pending == ()
    assert after.document()["tiers"]["edges"] == [0.25, 0.5]
    shown = [describe(p.document()) for p in (plan, after)]
    assert "  tiers       cut at the quantiles 0.5, 0.9 of the score (noisy answers)" in shown[0]
    assert "  tiers       cut at 0.250, 0.500 (noisy answers)" in shown[1]
    assert (after.mechanism, after.guarantee.total) == (plan.mechanism, plan.guarantee.total)
    cheaper = planned(tmp_path, (RARITY | {"noise_multiplier": 9.0},))
    with pytest.raises(BudgetError, match="would not be the one that was accounted"):
        settle(plan.__class__(**vars(plan) | {"basis": cheaper.basis}), plan.population, None, (0.25, 0.5))


def test_what_is_asked_is_checked_against_the_charges(tmp_path):
    """No query more, and none fewer. Break: the check left out."""
    plan, other = planned(tmp_path), planned(tmp_path, (RARITY | {"noise_multiplier": 9.0},))
    answers._check_accounted(plan, learners(plan.basis))
    for found in (learners(other.basis), ()):
        with pytest.raises(RuntimeError, match="not what was accounted"):
            answers._check_accounted(plan, found)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bad queries", r"sensitivity: tests\.data\.scores.*Learner.*`queries` fails \(KeyError"),
        ("twice", r'the query "users" is declared twice'),
    ],
)
def test_queries_that_can_not_be_declared_are_one_line(how, message, tmp_path):
    """Break: what a plugin's `queries` raises let through."""
    with pytest.raises(ArgumentError, match=message) as caught:
        planned(tmp_path, (SOMEBODYS | {"how": how},))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("score", "tiers", "message"),
    [
        (RARITY, {"edges": [0.5], "names": ["a", "b"]}, "sensitivity.scores.0.type: it learns from noisy answers"),
        ({"type": "volume"}, {"quantiles": [0.5], "names": ["a", "b"]}, "tiers.quantiles: the edges are noisy answers"),
    ],
)
def test_a_run_without_noise_can_not_learn(score, tiers, message, tmp_path):
    """Nothing could be charged. Break: `_learnt` left out: a traceback when the run asks."""
    with pytest.raises(SpecErrors, match=message):
        planned(tmp_path, (score,), tiers, noise={"type": "none"}, data={"weights": {"a": 0.5, "b": 0.5}})


def test_edges_as_they_were_answered_survive_a_crash(tmp_path):
    """A damaged file is one line. Break: edges guessed where the file is damaged."""
    from harness.errors import MachineError
    from harness.training.job import Folder

    folder = Folder(tmp_path / "run")
    folder.private.mkdir(parents=True)
    (folder.private / answers.EDGES).write_text(json.dumps({"edges": [0.25, 0.5]}))
    assert answers.read_edges(folder) == [0.25, 0.5]
    for damage in ("", "[1]", '{"edges": ["x"]}'):
        (folder.private / answers.EDGES).write_text(damage)
        with pytest.raises(MachineError, match="is damaged"):
            answers.read_edges(folder)


@pytest.mark.parametrize("noise", [PER_TIER, {"type": "uniform"}])
@pytest.mark.parametrize("unit", ["example", "auto"])
def test_what_is_chosen_later_is_never_refused_after_it_was_paid_for(noise, unit, tmp_path):
    """Whatever the noisy median says. Break: `largest` of what stands in for the choice stated before the answers."""
    sampling = {"unit": unit, "expected": 32, "examples_per_user": "auto"}
    for epsilon, steps in ((3.1, 5), (8.0, 12)):
        own = noise | {"epsilon": {"low": epsilon, "mid": 0.8 * epsilon, "high": epsilon / 2}}
        plan = planned(
            tmp_path, noise=own if noise is PER_TIER else noise, sampling=sampling, train={"steps": steps},
            privacy={"epsilon": epsilon},
        )  # fmt: skip
        assert plan.guarantee.total == epsilon
        for median in (1.0, 5.0, 20.0):
            after = settle(plan, plan.population, median, (0.2, 0.5))
            assert after.guarantee.total is not None
            assert after.guarantee.total <= epsilon * (1 + 1e-9)


def test_a_choice_that_could_be_refused_later_is_refused_now(tmp_path):
    """Break: the check taken out."""
    sampling = {"unit": "example", "expected": 32, "examples_per_user": "auto"}
    with pytest.raises(ArgumentError, match=r"sampling: auto does not go with groups that are learnt"):
        planned(tmp_path, noise={**PER_TIER, "type": "sample"}, sampling=sampling)


def test_quantiles_that_are_almost_alike_are_different_questions(tmp_path):
    """Break: names of queries with fewer digits than the quantiles have: the run would end after it was charged."""
    plan = planned(tmp_path, tiers={"quantiles": [0.3, 0.30000000001], "names": ["low", "mid", "high"]})
    names = [query.name for query in cuts(plan.basis)]
    assert len(set(names)) == 2
    with pytest.raises(SpecErrors, match=r"quantiles.0: must be a number of at least 1e-06"):
        planned(tmp_path, tiers={"quantiles": [1e-31, 0.5], "names": ["low", "mid", "high"]})


def test_no_group_is_promised_what_is_not_claimed(tmp_path):
    """In sentences of plan and report. Break: the plan's word on it left out."""
    document = explained(planned(tmp_path).document())
    assert document["claimed_by_group"] is False
    for group in document["groups"]:
        assert group["reason"].startswith(f"Its levers aim at ε = {group['target_epsilon']:g}. Who is in it follows")
        assert "At most ε" not in group["reason"]
    public = explained(
        planned(tmp_path, ({"type": "volume"},), {"edges": [0.2, 0.6], "names": ["low", "mid", "high"]}).document()
    )
    assert public["claimed_by_group"] is True
    assert public["groups"][0]["reason"].startswith("At most ε = 8")
