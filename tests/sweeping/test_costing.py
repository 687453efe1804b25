"""What a search costs: no candidate of any space is exposed more than was accounted before the first trial."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from harness.errors import BudgetError, UserError
from harness.planning import Plan, completing, make_plan
from harness.planning.basis import SearchTerms
from harness.planning.fitting import rdp_of, refusal_of
from harness.privacy import accounting
from harness.privacy.ledger import Ledger
from harness.privacy.renyi import accountant
from harness.sweeping import costing
from harness.sweeping.costing import SweepPlan, plan_sweep
from harness.sweeping.space import Candidate, base_values, draw
from tests.plans import USAGE, write_spec

SEGMENTS = {"type": "attribute", "column": "plan", "values": ["free"], "fallback": "paid"}
TARGETS = {"free": 8.0, "paid": 4.0}
PLAIN: dict[str, Any] = {
    "segmentation": SEGMENTS,
    "noise": {"type": "scale", "epsilon": TARGETS},
    "data": {"population": 4000, "weights": {"free": 0.7, "paid": 0.3}, "holdout": {"users": 0.1}},
}
LAWS: list[dict[str, Any]] = [
    {"law": "geometric", "mean": 10.0},
    {"law": "logarithmic", "mean": 30.0},
    {"law": "poisson", "mean": 6.0},
    {"law": "negative_binomial", "mean": 8.0, "shape": 2.0},
]
BLOCKS = [
    {"type": "uniform"},
    {"type": "scale", "epsilon": TARGETS},
    {"type": "sample", "epsilon": TARGETS},
    {"type": "product", "epsilon": TARGETS, "clip_share": 0.5},
    {"type": "participation", "epsilon": {"free": 6.0, "paid": 5.0}},
    {"type": "schedule", "over": "noise", "shape": "linear", "end": 0.5, "plateaus": 3, "epsilon": TARGETS},
]
POOL: dict[str, Sequence[dict[str, Any]]] = {
    "sampling.expected": ({"choice": [10, 40, 160]}, {"int": [5, 150]}),
    "train.steps": ({"choice": [4, 12, 50]}, {"int": [3, 80]}),
    "clipping.norm": ({"loguniform": [0.1, 2.0]},),
    "train.optimizer.lr": ({"loguniform": [0.001, 0.1]},),
    "noise": ({"choice": BLOCKS},),
    "noise.epsilon.paid": ({"uniform": [1.0, 7.0]}, {"choice": [2.0, 4.0, 8.0]}),
    "clipping": ({"choice": [{"type": "fixed", "norm": 1.0}, {"type": "adaptive", "initial": 0.5}]},),
    "sampling": (
        {
            "choice": [
                {"unit": "user", "expected": 30, "examples_per_user": 2},
                {"unit": "example", "expected": 60, "examples_per_user": 3},
            ]
        },
    ),
}
"""Keys, each with priors that a space may give it."""
NEVER_BOTH = (("noise", "noise.epsilon.paid"), ("clipping", "clipping.norm"), ("sampling", "sampling.expected"))


def swept(folder: Path, space: Mapping[str, Any], trials: Any = LAWS[0], **changes: Any) -> SweepPlan:
    """The plan of a sweep over this space."""
    kind = "optuna" if isinstance(trials, int) else "random"
    changes = {**PLAIN, **changes}
    sweep = {"space": dict(space), "search": {"type": kind, "trials": trials}}
    return plan_sweep(write_spec(folder, sweep=sweep, **changes))


def drawn(sweep: SweepPlan, count: int, seed: int = 1) -> list[Candidate]:
    """So many draws from a space."""
    numbers, base = random.Random(seed), base_values(sweep.untuned.loaded.resolved)
    return [draw(sweep.block.space, lambda _: 1 - numbers.random(), base) for _ in range(count)]


def price_of(curve: Sequence[float | None], orders: Sequence[float], search: Mapping[str, Any], delta: float) -> float:
    """ε of the whole search, from what is in ``privacy.json`` alone: the formulas of the paper, written down again."""
    values = [math.inf if v is None else v for v in curve]
    mean, law = search["mean"], search["law"]
    if law == "fixed":
        whole = [mean * v for v in values]
    elif law == "poisson":
        ours = RdpAccountant(orders=list(orders))
        ours._rdp += values
        whole = [
            v + mean * ours.get_delta(math.log1p(1 / (a - 1))) + math.log(mean) / (a - 1)
            for a, v in zip(orders, values, strict=True)
        ]
    else:
        shape = {"geometric": 1.0, "logarithmic": 0.0}.get(law, search["shape"])
        gamma = gamma_of(shape, mean)
        least = min((1 - 1 / a) * v - math.log(gamma) / a for a, v in zip(orders, values, strict=True))
        whole = [v + (1 + shape) * least + math.log(mean) / (a - 1) for a, v in zip(orders, values, strict=True)]
    return max(
        0.0,
        min(v + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a, v in zip(orders, whole, strict=True)),
    )


def gamma_of(shape: float, mean: float) -> float:
    """γ of the truncated negative binomial with this mean, by bisection."""

    def mean_at(gamma: float) -> float:
        if shape == 0:
            return (1 / gamma - 1) / -math.log(gamma)
        return shape * (1 / gamma - 1) / -math.expm1(shape * math.log(gamma))

    low, high = 1e-12, 1 - 1e-12
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_at(middle) > mean else (low, middle)
    return low


def own_curve(event: dp_event.DpEvent, orders: Sequence[float]) -> list[float]:
    """Rényi DP of an event: dp-accounting's, and of what it does not know (mixtures) or gets wrong, the integral."""
    if any(hasattr(step, "sensitivities") for step, _ in accounting.parts(event)):
        return [float(v) for v in accountant(orders).compose(event).rdp]
    return [float(v) for v in RdpAccountant(orders=list(orders)).compose(event).rdp]


def check(plan: Plan, claims: Mapping[str, float] | None, largest: float) -> None:
    """A trial is under the reference, and the reference costs what is claimed."""
    guarantee, mechanism = plan.guarantee, plan.mechanism
    document = json.loads(json.dumps(guarantee.document("finished", mechanism.steps)))
    search, orders = document["search"], document["search"]["orders"]
    delta = document["delta"]
    prices = []
    for i, (group, curve) in enumerate(zip(document["groups"], search["curves"], strict=True)):
        own = own_curve(mechanism.event(i), orders)
        for value, limit in zip(own, curve, strict=True):
            assert limit is None or value <= limit * (1 + 2e-9)
        prices.append(price_of(curve, orders, search, delta))
        assert group["epsilon"] == (largest if claims is None else claims[group["name"]])
        assert prices[-1] <= group["epsilon"] * (1 + 1e-8)
        assert prices[-1] >= group["epsilon"] * 0.99
    if search["holdout"] is not None:
        prices.append(price_of(search["holdout"]["curve"], search["holdout"]["orders"], search, delta))
        assert document["holdout"]["epsilon"] * 0.99 <= prices[-1] <= document["holdout"]["epsilon"] * (1 + 1e-8)
        own = own_curve(mechanism.holdout_event(), search["holdout"]["orders"])
        assert all(a <= b * (1 + 1e-6) for a, b in zip(own, search["holdout"]["curve"], strict=True))
    assert document["epsilon"] * 0.99 <= max(prices) <= document["epsilon"] * (1 + 1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_every_candidate_lies_under_what_was_accounted(seed: int, tmp_path: Path) -> None:
    """Of random spaces: curves and prices computed again from the mechanism and from ``privacy.json`` alone.

    Break: `_claimed` without its refusal, and `Exposure.log_excess` a tenth too low.
    """
    numbers = random.Random(seed)
    keys = numbers.sample(list(POOL), 3)
    for above, below in NEVER_BOTH:
        if above in keys and below in keys:
            keys.remove(above)
    space = {key: numbers.choice(POOL[key]) for key in keys}
    sweep = swept(tmp_path, space, numbers.choice([*LAWS, 5]))
    assert sweep.terms is not None
    check(sweep.plan, sweep.terms.claims, sweep.terms.largest)
    planned = 0
    for candidate in drawn(sweep, 4, seed):
        try:
            plan = sweep.plan_of(candidate)
        except UserError:
            continue
        planned += 1
        check(plan, sweep.terms.claims, sweep.terms.largest)
        assert plan.guarantee.search is not None
        assert sweep.plan.guarantee.search is not None
        assert plan.guarantee.search.curves == sweep.plan.guarantee.search.curves
        assert plan.guarantee.total == sweep.plan.guarantee.total
    assert planned >= 2


def test_other_groups_are_claimed_the_budget_alone(tmp_path: Path) -> None:
    """Candidates with other groups. Break: claims by the group's name, which says nothing of who is in it."""
    data = {**PLAIN["data"], "weights": {"few": 0.5, "many": 0.5}}
    noise = {"type": "scale", "epsilon": {"few": 8.0, "many": 4.0}}
    space = {"segmentation.edges": {"choice": [[2], [4]]}, "train.steps": {"choice": [5, 30]}}
    sweep = swept(tmp_path, space, segmentation=USAGE, noise=noise, data=data)
    assert sweep.terms is not None
    assert sweep.terms.claims is None
    check(sweep.plan, None, 8.0)
    for candidate in drawn(sweep, 4):
        check(sweep.plan_of(candidate), None, 8.0)


def test_private_hold_out_users_are_part_of_the_search(tmp_path: Path) -> None:
    """Break: `_claimed` gives the curve of what this one trial exposes them to."""
    data = {**PLAIN["data"], "holdout": {"users": 0.1, "visibility": "private"}}
    space = {"noise.epsilon.paid": {"choice": [2.0, 6.0]}, "noise.epsilon.free": {"choice": [3.0, 8.0]}}
    noise = {"type": "scale", "epsilon": {"free": 3.0, "paid": 2.0}}
    sweep = swept(tmp_path, space, data=data, noise=noise)
    assert sweep.terms is not None
    assert sweep.terms.largest == 8.0
    for plan in (sweep.plan, *(sweep.plan_of(candidate) for candidate in drawn(sweep, 4))):
        check(plan, sweep.terms.claims, 8.0)
        assert plan.guarantee.holdout == 8.0
        # The same row of a ledger whichever is planned: it does not know which will win.
        for order in (4.0, 16.0):
            assert rdp_of(plan.guarantee, order) == rdp_of(sweep.plan.guarantee, order)
            search = plan.guarantee.search
            assert search is not None
            assert search.holdout is not None
            assert rdp_of(plan.guarantee, order) >= search.searched.answers().rdp(search.holdout, order)


def test_answers_are_asked_in_every_trial(tmp_path: Path) -> None:
    """Break: the reference without its charges."""
    data = {**PLAIN["data"], "weights": "noisy"}
    sweep = swept(tmp_path, {"train.steps": {"choice": [5, 30]}}, data=data)
    assert sweep.terms is not None
    assert sweep.terms.searched.charges == sweep.untuned.mechanism.charges != ()
    for candidate in drawn(sweep, 3):
        check(sweep.plan_of(candidate), sweep.terms.claims, sweep.terms.largest)


def foreign(sweep: SweepPlan) -> tuple[Candidate, SearchTerms]:
    """A candidate, and terms that know less of its exposure than it needs."""
    assert sweep.terms is not None
    claims = {"free": 8.0, "paid": 3.9}
    return drawn(sweep, 1)[0], SearchTerms(sweep.terms.searched, claims, 8.0)


def test_a_candidate_that_is_exposed_more_is_refused(tmp_path: Path) -> None:
    """Break: `_claimed` without its refusal."""
    sweep = swept(tmp_path, {"train.steps": {"choice": [5, 30]}})
    candidate, terms = foreign(sweep)
    with pytest.raises(BudgetError, match="exposed more than the search has accounted for"):
        make_plan(sweep.load(candidate), search=terms, count=sweep.count)
    unknown = SearchTerms(terms.searched, {"free": 8.0}, 8.0)
    with pytest.raises(BudgetError, match="a group that the search has not accounted for"):
        make_plan(sweep.load(candidate), search=unknown, count=sweep.count)


def test_a_price_below_the_claim_is_not_enough(tmp_path: Path) -> None:
    """Trials under different curves cost more together than each: what counts is the reference alone.

    Break: `group_within` gives the price of a run that is not under what its target allows.
    """
    sweep = swept(tmp_path, {"train.steps": {"choice": [5, 30]}})
    candidate, _ = foreign(sweep)
    assert sweep.terms is not None
    searched = sweep.terms.searched
    plan = sweep.plan_of(candidate)
    assert accounting.group_within(plan.mechanism, 0, 8.0, 1e-5, searched) == 8.0
    target = 7.9
    with pytest.MonkeyPatch.context() as patch:
        # As where a curve's numbers are rough, and the member of the family above it is another kind of curve.
        patch.setattr(accounting, "group_epsilon", lambda *_: 1.0)
        assert accounting.group_within(plan.mechanism, 0, target, 1e-5, searched) > target


def test_targets_of_merged_groups_are_known_beforehand(tmp_path: Path) -> None:
    """Break: the targets that a policy gives to the merged groups, whose names it does not know."""
    segmentation = {**SEGMENTS, "values": ["free", "paid"], "fallback": "team"}
    data = {**PLAIN["data"], "weights": {"free": 0.9, "paid": 0.06, "team": 0.04}}
    targets = {"free": 8.0, "paid": 4.0, "team": 3.0}
    noise = {"type": "scale", "epsilon": targets}
    space = {"noise.epsilon.team": {"choice": [2.0, 3.9]}}
    groups = {"smallest": 0.08, "merged": "rest"}
    sweep = swept(tmp_path, space, segmentation=segmentation, noise=noise, data=data, groups=groups)
    assert sweep.terms is not None
    assert sweep.terms.claims == {"free": 8.0, "rest": 3.9}
    for candidate in drawn(sweep, 4):
        check(sweep.plan_of(candidate), sweep.terms.claims, 8.0)


@pytest.mark.parametrize("trials", [*LAWS, 5])
def test_more_trials_leave_each_more_noise(trials: Any, tmp_path: Path) -> None:
    """Break: `prices` without the trials."""
    sweep = swept(tmp_path, {"train.steps": {"choice": [5, 30]}}, trials)
    by_name = {price.name: price for price in sweep.prices}
    alone = by_name["no search: one run"].noise_multiplier
    own = [price for price in sweep.prices if price.own]
    assert len(own) == 1
    assert alone is not None
    assert all(p.noise_multiplier is not None and p.noise_multiplier >= alone for p in sweep.prices)
    worst = max(range(len(sweep.plan.mechanism.groups)), key=lambda i: sweep.plan.targets[sweep.plan.groups[i].name])
    assert own[0].noise_multiplier == pytest.approx(sweep.plan.mechanism.noise_multiplier(worst), rel=1e-4)


def test_a_trial_computes_no_curve_that_nobody_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ε of a search is spent from the beginning. Break: `epsilon_curve` of every trial."""
    sweep = swept(tmp_path, {"train.steps": {"choice": [5, 30]}})

    def never(*_: Any) -> Any:
        raise AssertionError("a curve was computed")

    names: list[Callable[..., Any]] = [completing.epsilon_curve, completing.trade_offs]
    for function in names:
        monkeypatch.setattr(completing, function.__name__, never)
    plan = sweep.plan_of(drawn(sweep, 1)[0])
    assert plan.curve == ((0, 8.0), (plan.mechanism.steps, 8.0))
    assert plan.guarantee.accountant == "rdp"


def test_a_ledger_of_one_order_can_hold_a_search(tmp_path: Path) -> None:
    """At an order that no price needs: trials are held there too, and what is reserved is finite.

    Break: `_order_of` gives none.
    """
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url).set_budget("posts", 5000.0, 1e-4, 64.0)
    space = {"train.steps": {"choice": [5, 30]}, "sampling.expected": {"choice": [10, 40]}}
    sweep = swept(tmp_path, space, privacy={"ledger": url})
    assert sweep.terms is not None
    assert 64.0 in sweep.terms.searched.orders
    assert sweep.plan.ledger is not None
    assert sweep.plan.ledger.refusal is None
    reserved = rdp_of(sweep.plan.guarantee, 64.0)
    assert 0 < reserved < math.inf
    # Where there is less, it says which orders cost it less.
    Ledger(url).set_budget("posts", 50.0, 1e-4, 64.0)
    told = str(refusal_of(Ledger(url).account("posts"), sweep.plan.guarantee))
    assert "or a budget at an order from" in told
    assert "to 64 " not in told
    for candidate in drawn(sweep, 3):
        plan = sweep.plan_of(candidate)
        check(plan, sweep.terms.claims, sweep.terms.largest)
        assert rdp_of(plan.guarantee, 64.0) == reserved
        own = max(own_curve(plan.mechanism.event(i), [64.0])[0] for i in range(len(plan.groups)))
        assert own < reserved


def test_an_order_that_the_plan_does_not_know_is_named(tmp_path: Path) -> None:
    """A budget that came after the plan. Break: `refusal_of` without its look, which says "infinite"."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    sweep = swept(tmp_path, {"train.steps": {"choice": [5, 30]}}, privacy={"ledger": url})
    Ledger(url).set_budget("posts", 50.0, 1e-4, 512.0)
    refusal = refusal_of(Ledger(url).account("posts"), sweep.plan.guarantee)
    assert refusal is not None
    assert 'the budget of "posts" adds Rényi DP at order 512, and of this search it is known at orders up to' in refusal
    assert "inf" not in refusal
    assert "\n" not in refusal


# --- every law, unit and lever ------------------------------------------------------------------------------------

ALL_LAWS = [*LAWS, 5]
LEVERS: list[tuple[str, dict[str, Any]]] = [
    ("user", {"type": "scale", "epsilon": TARGETS}),
    ("user", {"type": "sample", "epsilon": TARGETS}),
    ("user", {"type": "participation", "epsilon": {"free": 8.0, "paid": 7.0}}),
    ("example", {"type": "scale", "epsilon": TARGETS}),
    ("example", {"type": "sample", "epsilon": TARGETS}),
    ("example", {"type": "contribution", "epsilon": TARGETS}),
    ("example", {"type": "participation", "epsilon": {"free": 2.0, "paid": 1.6}}),
]


@pytest.mark.parametrize("trials", ALL_LAWS, ids=lambda one: one if isinstance(one, int) else one["law"])
@pytest.mark.parametrize(("unit", "noise"), LEVERS, ids=lambda one: one if isinstance(one, str) else one["type"])
def test_the_whole_search_costs_the_budget(
    trials: Any, unit: str, noise: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a percent, and never more: recomputed from the reference curves in ``privacy.json`` alone, of a plan and of a
    trial whose sampling and steps are others.

    Break: `_allowed` for a hundredth more than the target; the mean of the law a tenth smaller in `Trials.event`.
    """
    rdp = {"accountant": "rdp"}
    monkeypatch.setattr(costing, "prices", lambda *_: ())  # of other searches, which nothing here looks at
    steps, largest = (40 if noise["type"] == "participation" else 10), max(noise["epsilon"].values())
    # Where few are sampled, one step costs nearly as much as all: then steps are no lever.
    expected = 1200 if (unit, noise["type"]) == ("example", "participation") else 40
    sampling = {"unit": unit, "expected": expected, "examples_per_user": 4}
    space = {"train.steps": {"choice": [steps, 2 * steps]}, "sampling.expected": {"choice": [expected // 2, expected]}}
    sweep = swept(tmp_path, space, trials, noise=noise, sampling=sampling, train={"steps": steps}, privacy=rdp)
    assert sweep.terms is not None
    check(sweep.plan, sweep.terms.claims, largest)
    assert sweep.plan.guarantee.total == largest
    candidate = Candidate((("train.steps", 2 * steps), ("sampling.expected", expected // 2)))
    check(sweep.plan_of(candidate), sweep.terms.claims, largest)
