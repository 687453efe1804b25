"""From a spec to a plan: only public knowledge goes in, and every group's ε is computed again before it comes out."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from harness.data.holdout import is_holdout
from harness.errors import ArgumentError, BudgetError
from harness.planning import make_plan, noise_to_signal
from harness.plugins import Lever, Proposal
from harness.privacy import calibration
from harness.spec import SpecErrors, load_spec
from policies.segmentation.usage import Usage
from tests.plans import ATTRIBUTE, USAGE, Rogue, Trapped, posts, write_spec

THREE = {"free": 0.6, "paid": 0.3, "other": 0.1}
SCALE = {"type": "scale", "epsilon": {"free": 8.0, "paid": 4.0, "other": 2.0}}
ROGUE = {"type": "tests.plans:Rogue"}


def held_out(users, fraction):
    return sum(is_holdout(f"u{u}", "posts", fraction) for u in range(users))


@pytest.fixture
def plan(tmp_path):
    """Plans a changed spec."""
    return lambda records=None, overrides=(), **changes: make_plan(write_spec(tmp_path, records, **changes), overrides)


# --- who is counted, and from where -------------------------------------------------------------------------


def test_a_declared_population_counts_without_the_hold_out(plan):
    """N = 1000 · (1 − 0.1). Break: the fraction ignored."""
    found = plan(data={"holdout": {"users": 0.1}, "weights": THREE}, segmentation=ATTRIBUTE)
    population = found.population
    assert (population.users, population.holdout_users, population.source) == (900.0, None, "declared")
    assert [g.users for g in found.mechanism.groups] == pytest.approx([540.0, 270.0, 90.0])
    assert {g.sampling_rate for g in found.mechanism.groups} == {20 / 900}
    assert found.mechanism.denominator(0) == pytest.approx(20)


def test_a_public_population_is_counted_by_name(plan):
    """Break: records counted for users, or hold-out users counted as training ones."""
    found = plan(data={"population": "public", "holdout": {"users": 0.25}}, sampling={"expected": 5})
    held = held_out(40, 0.25)
    assert 0 < held < 40
    assert (found.population.users, found.population.holdout_users) == (40.0 - held, held)
    assert found.population.source == "public"
    assert found.mechanism.groups[0].sampling_rate == 5 / (40 - held)


def test_public_weights_are_the_training_users_of_public_segments(plan):
    """Break: hold-out users in the weights, or records counted."""
    found = plan(data={"holdout": {"users": 0.25}}, segmentation=ATTRIBUTE)
    training = [u for u in range(40) if not is_holdout(f"u{u}", "posts", 0.25)]
    paid = sum(u % 4 == 0 for u in training) / len(training)
    assert found.population.weights == pytest.approx({"free": 1 - paid, "paid": paid, "other": 0.0})
    assert found.population.weights_source == "public"
    assert found.population.users == 750.0  # declared all the same


def test_a_segment_of_nobody_is_left_out(plan):
    """The fallback without users. Break: a group of weight 0, which no mechanism can hold."""
    found = plan(segmentation=ATTRIBUTE)
    assert tuple(g.segment for g in found.groups) == ("free", "paid")
    assert [g.name for g in found.mechanism.groups] == ["free", "paid"]
    assert [g["segment"] for g in found.document()["groups"]] == ["free", "paid"]


@pytest.mark.parametrize("rule", [ATTRIBUTE, {"type": "attribute", "column": "plan"}], ids=["given", "bound"])
def test_a_segment_of_nobody_still_takes_a_target(plan, rule):
    """The spec can't know that it is empty, and must name it. Break: only the groups with users shown to the policy
    (no spec would then satisfy both the loader and the plan).
    """
    found = plan(segmentation=rule, noise=SCALE)
    assert found.targets == {"free": 8.0, "paid": 4.0}
    assert tuple(g.segment for g in found.groups) == ("free", "paid")
    assert sum(found.population.weights[g.name] * g.clip_norm for g in found.mechanism.groups) == pytest.approx(0.5)


def test_users_without_a_value_make_the_fallback_a_group(plan):
    """Break: users of unknown value left out of the plan."""
    records = posts(plan=lambda u: (None, "free", "paid", "team")[u % 4])
    found = plan(records, segmentation=ATTRIBUTE)
    assert found.population.weights == pytest.approx({"free": 0.25, "paid": 0.25, "other": 0.5})
    assert tuple(g.segment for g in found.groups) == ("free", "paid", "other")


def test_values_that_are_not_given_are_those_that_occur(plan):
    """Break: the unbound rule kept in the plan (training would put everybody into the fallback)."""
    found = plan(segmentation={"type": "attribute", "column": "plan"})
    assert tuple(g.segment for g in found.groups) == ("free", "paid")
    assert found.segmenter.segments == ("free", "paid", "other")
    assert found.segmenter.assign({"plan": "paid"}) == "paid"
    records = posts(plan=lambda u: None)
    with pytest.raises(ArgumentError, match=r'^segmentation: the column "plan" has no value in the data$'):
        plan(records, segmentation={"type": "attribute", "column": "plan"})


def test_declared_weights_must_name_the_segments(plan):
    """Also where only the data say which there are. Break: names that are not asked for ignored."""
    rule = {"type": "attribute", "column": "plan"}
    with pytest.raises(ArgumentError, match=r"^data\.weights: must name exactly the segments free, paid, other$"):
        plan(data={"weights": {"free": 0.5, "gone": 0.5}}, segmentation=rule)
    found = plan(data={"weights": THREE}, segmentation=rule)
    assert found.population.weights == THREE
    assert found.population.weights_source == "declared"


def test_groups_of_own_records_need_given_weights(plan):
    """Break: own-records groups counted in the data."""
    with pytest.raises(SpecErrors, match="can't be counted where segments are made from users' own records"):
        plan(segmentation=USAGE)
    found = plan(data={"weights": {"few": 0.7, "many": 0.3}}, segmentation=USAGE)
    assert found.population.weights == {"few": 0.7, "many": 0.3}
    assert found.guarantee.own_records
    assert not plan(segmentation=ATTRIBUTE).guarantee.own_records


@pytest.mark.parametrize(
    ("changes", "relation", "words"),
    [
        ({}, "add_or_remove", 0),
        ({"data": {"population": "public"}}, "zero_out", 1),
        ({"segmentation": ATTRIBUTE}, "zero_out", 1),
        ({"segmentation": ATTRIBUTE, "data": {"population": "public"}}, "zero_out", 2),
        ({"segmentation": ATTRIBUTE, "data": {"weights": THREE}}, "add_or_remove", 0),
        ({"segmentation": {"type": "attribute", "column": "plan"}, "data": {"weights": "noisy"}}, "zero_out", 1),
        ({"segmentation": ATTRIBUTE, "data": {"weights": "noisy"}}, "add_or_remove", 0),
        ({"segmentation": USAGE, "data": {"weights": {"few": 0.7, "many": 0.3}}}, "add_or_remove", 0),
        (
            {"segmentation": USAGE, "data": {"weights": {"few": 0.7, "many": 0.3}, "population": "public"}},
            "zero_out",
            1,
        ),
    ],
)
def test_what_was_counted_decides_the_neighbours(plan, changes, relation, words):
    """A removed user stays counted wherever a count of the data was used, if only to name the groups.

    Break: always add or remove; groups named after the values that occur, under add or remove.
    """
    found = plan(**changes)
    assert found.mechanism.relation == relation
    assert found.document()["relation"] == relation
    assert len(found.guarantee.counts_public) == words
    assert ("have been emptied" in found.guarantee.statement()) == (relation == "zero_out")


def test_nobody_to_train_on_is_refused(plan):
    """Break: a division by zero."""
    with pytest.raises(ArgumentError, match="there are no users to train on"):
        plan(posts(1), data={"population": "public", "holdout": {"users": 0.999999}}, sampling={"expected": 0.5})


# --- the plan reads no text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"population": "public"}},
        {"segmentation": ATTRIBUTE},
        {"segmentation": {"type": "attribute", "column": "plan"}},
        {"segmentation": USAGE, "data": {"weights": {"few": 0.7, "many": 0.3}, "population": "public"}},
    ],
    ids=["declared", "public", "attribute", "unbound attribute", "usage"],
)
def test_a_plan_reads_no_record_and_asks_no_rule_of_own_records(plan, changes, monkeypatch):
    """The source's texts and the own-records rule are booby-trapped.

    Break: `make_plan` calls ``next(source.records(…))``, or counts users from `records`.
    """
    monkeypatch.setattr(Usage, "assign", lambda *_: pytest.fail("an own-records rule was run"))
    data = changes.get("data", {}) | {"source": {"type": "tests.plans:Trapped"}}
    found = plan(**(changes | {"data": data}))
    assert isinstance(found.source, Trapped)
    assert found.guarantee.total <= 8.0
    found.document()


def test_texts_change_nothing_of_a_plan(plan):
    """Break: a count of records or tokens anywhere in the plan."""

    def document(*records):
        made = plan(*records, segmentation=ATTRIBUTE, data={"population": "public"}).document()
        return made | {"memory": made["memory"] | {"available": None}}  # of this machine, at this moment

    short = document()
    records = [post | {"text": post["text"] * 9} for post in posts()] + posts()
    assert document(records) == short


# --- budget -------------------------------------------------------------------------------------------------


def test_delta_defaults_to_a_tenth_of_the_training_users(plan):
    """Break: all users, hold-out included, or 1 / N."""
    found = plan(data={"population": "public", "holdout": {"users": 0.25}}, privacy={"delta": None})
    assert found.guarantee.delta == 1 / (10 * (40 - held_out(40, 0.25)))
    assert plan(data={"population": "public"}).guarantee.delta == 1e-5
    with pytest.raises(SpecErrors, match=r"privacy\.delta: .*must be given where data\.population is not public"):
        plan(privacy={"delta": None})


def test_more_users_a_step_than_there_are_is_refused(plan):
    """Break: the rate cut to 1 (the denominator would be wrong)."""
    message = r"^sampling\.expected: 41 users per step, but there are 40 to train on; give fewer$"
    with pytest.raises(ArgumentError, match=message) as caught:
        plan(data={"population": "public"}, sampling={"expected": 41})
    assert caught.value.exit_code == 2
    assert plan(data={"population": "public"}, sampling={"expected": 40}).mechanism.groups[0].sampling_rate == 1.0


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_every_group_is_accounted_again_and_within_its_target(plan, accountant):
    """From the document's own numbers, with dp-accounting alone. Break: targets given to groups in another order."""
    found = plan(segmentation=ATTRIBUTE, data={"weights": THREE}, noise=SCALE, privacy={"accountant": accountant})
    document = found.document()
    assert [g["target_epsilon"] for g in document["groups"]] == [8.0, 4.0, 2.0]
    for g in document["groups"]:
        gaussian = dp_event.GaussianDpEvent(document["noise_std"] / g["clip_norm"])
        event = dp_event.SelfComposedDpEvent(dp_event.PoissonSampledDpEvent(g["sampling_rate"], gaussian), g["steps"])
        rdp = RdpAccountant().compose(event).get_epsilon(1e-5)
        assert g["epsilon"] <= g["target_epsilon"] * (1 + 1e-9)
        assert g["epsilon"] >= g["target_epsilon"] * (1 - 1e-3)
        if accountant == "rdp":
            # From above: the last bits of a noise multiplier are dropped, and never added.
            assert rdp * (1 - 1e-12) <= g["epsilon"] <= rdp * (1 + 1e-11)
        else:
            assert 0.7 * rdp < g["epsilon"] < rdp
    assert document["epsilon"] == max(g["epsilon"] for g in document["groups"])
    mean = sum(g["weight"] * g["clip_norm"] for g in document["groups"])
    assert mean == pytest.approx(0.5)


def test_a_calibration_that_misses_its_target_is_refused(plan, monkeypatch):
    """Break: the call of `verify` taken out of the plan."""
    honest = calibration.noise_multiplier
    monkeypatch.setattr(calibration, "noise_multiplier", lambda *a: 0.99 * honest(*a))
    with pytest.raises(BudgetError, match="the plan is refused: group everyone comes to ε = 8") as caught:
        plan()
    assert caught.value.exit_code == 3


def test_equal_targets_plan_the_uniform_mechanism(plan):
    """Break: anything of a group's name or weight in its lever."""
    equal = plan(
        segmentation=ATTRIBUTE,
        data={"weights": THREE},
        noise={"type": "scale", "epsilon": dict.fromkeys(THREE, 8.0)},
    )
    uniform = plan(segmentation=ATTRIBUTE, data={"weights": THREE})
    assert equal.mechanism.noise_std == pytest.approx(uniform.mechanism.noise_std, rel=1e-6)
    for a, b in zip(equal.mechanism.groups, uniform.mechanism.groups, strict=True):
        assert a.clip_norm == pytest.approx(b.clip_norm, rel=1e-6)
        assert b.clip_norm == pytest.approx(0.5, rel=1e-6)
        assert a.sampling_rate == b.sampling_rate


def test_the_curve_ends_at_the_total(plan):
    """Break: the curve of another mechanism or δ."""
    found = plan(train={"checkpoint_every": 4})
    assert [t for t, _ in found.curve] == [0, 4, 8, 10]
    assert found.curve[-1][1] == found.guarantee.total


def test_without_noise_there_is_no_guarantee(plan):
    """Break: δ or ε kept, or no note."""
    found = plan(noise={"type": "none"})
    assert not found.mechanism.private
    assert (found.guarantee.total, found.guarantee.delta, found.targets, found.curve) == (None, None, None, ())
    document = found.document()
    assert (document["private"], document["epsilon"], document["noise_std"]) == (False, None, 0.0)
    assert document["groups"][0]["noise_multiplier"] == 0
    assert any(note.startswith("NOT PRIVATE") for note in document["notes"])
    assert found.guarantee.statement().startswith("NOT PRIVATE")
    assert not any("NOT PRIVATE" in note for note in plan().notes())


# --- what the digest holds ----------------------------------------------------------------------------------

TIERED = {
    "segmentation": ATTRIBUTE,
    "data": {"weights": THREE},
    "noise": {"type": "scale", "epsilon": {"free": 8.0, "paid": 4.0, "other": 4.0}},
}


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=11",
        "privacy.epsilon=9",
        "privacy.delta=1e-6",
        "privacy.accountant=rdp",
        "sampling.expected=21",
        "sampling.examples_per_user=2",
        "clipping.norm=0.51",
        "data.population=1001",
        "data.population=public",
        "data.holdout.users=0.01",
        "data.weights={free: 0.59, paid: 0.31, other: 0.1}",
        "noise.epsilon={free: 8, paid: 4, other: 3.99}",
        "noise={type: none}",
        "segmentation.values=[paid, free]",
    ],
)
def test_whatever_changes_privacy_changes_the_digest(plan, override):
    """Break: the field left out of the mechanism."""
    before = plan(**TIERED)
    overrides = (
        [override] if override != "privacy.epsilon=9" else [override, "noise.epsilon={free: 9, paid: 4, other: 4}"]
    )
    assert plan(overrides=overrides, **TIERED).mechanism.digest != before.mechanism.digest


@pytest.mark.parametrize(
    "override",
    [
        "name=another",
        "seed=18",
        "compute={workers: 4, retries: 0, microbatch_tokens: 64, accelerator: cpu, deepspeed: {stage: 3}}",
        "report.html=false",
        "evaluation.users=7",
        "model.base=another-model",
        "train.optimizer.lr=0.1",
        "train.checkpoint_every=3",
        "data.max_tokens=64",
    ],
)
def test_whatever_does_not_change_privacy_does_not_change_the_mechanism(plan, override):
    """The seed above all: it never reaches cohorts or noise. Break: the field put into the mechanism."""
    before, after = plan(**TIERED), plan(overrides=[override], **TIERED)
    assert after.mechanism == before.mechanism
    assert after.mechanism.digest == before.mechanism.digest


# --- somebody else's policy ---------------------------------------------------------------------------------

UNBOUND = {"segmentation": {"type": "attribute", "column": "plan"}}
"""Segments that the spec alone does not know: the plan is the first to ask the policy."""


class Shifty(dict):
    """Says one thing when asked and another when taken."""

    def get(self, key, default=None):
        return 1.0


def proposing(monkeypatch, answer):
    monkeypatch.setattr(Rogue, "answer", staticmethod(answer), raising=False)


MALICIOUS = {
    "above the budget": lambda groups, epsilon: Proposal({g.name: epsilon * 1.0001 for g in groups}),
    "one above the budget": lambda groups, epsilon: Proposal(
        {g.name: 1.0 for g in groups} | {groups[-1].name: 2 * epsilon}
    ),
    "not a number": lambda groups, epsilon: Proposal({g.name: math.nan for g in groups}),
    "infinite": lambda groups, epsilon: Proposal({g.name: math.inf for g in groups}),
    "zero": lambda groups, epsilon: Proposal({g.name: 0.0 for g in groups}),
    "negative": lambda groups, epsilon: Proposal({g.name: -1.0 for g in groups}),
    "text": lambda groups, epsilon: Proposal({g.name: "8" for g in groups}),
    "leaves out a group": lambda groups, epsilon: Proposal({g.name: epsilon for g in list(groups)[1:]}),
    "empties the list": lambda groups, epsilon: groups.pop() and Proposal({g.name: epsilon for g in groups}),
    "no target": lambda groups, epsilon: Proposal(None),
    "raises": lambda groups, epsilon: {}["what\never"],
}


@pytest.mark.parametrize("unbound", [False, True], ids=["known to the spec", "known to the plan"])
@pytest.mark.parametrize("what", MALICIOUS)
def test_a_policy_cannot_propose_what_the_budget_does_not_hold(plan, monkeypatch, what, unbound):
    """In one line, exit code 2. Break: any one condition of `_propose` taken out, or a list handed to the policy."""
    proposing(monkeypatch, MALICIOUS[what])
    changes = UNBOUND if unbound else {"segmentation": ATTRIBUTE}
    with pytest.raises(ArgumentError) as caught:
        plan(noise=ROGUE, **changes)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    assert "noise" in str(caught.value)


@pytest.mark.parametrize("lever", [Lever.SAMPLING_RATE, Lever.CLIP_NORM_AND_SAMPLING_RATE])
def test_rates_can_not_follow_from_noisy_counts(plan, monkeypatch, lever):
    """Also of a policy that no spec check knows. Break: only `sample` and `product` refused, by their names.

    With sampling that auto chooses, the settled rates would follow the answers, accounted as if fixed before them.
    """
    targets = {"free": 8.0, "paid": 4.0, "other": 4.0}
    proposing(monkeypatch, lambda groups, epsilon: Proposal({g.name: targets[g.name] for g in groups}, lever))
    with pytest.raises(ArgumentError, match="noisy does not go with a noise policy that sets sampling rates"):
        plan(noise=ROGUE, segmentation=ATTRIBUTE, data={"weights": "noisy"}, sampling={"unit": "auto"})


def test_a_policy_that_shows_two_faces_is_held_to_the_first(plan, monkeypatch):
    """Targets that change after they were looked at. Break: a target that is read again."""
    proposing(monkeypatch, lambda groups, epsilon: Proposal(Shifty({g.name: 2 * epsilon for g in groups})))
    found = plan(noise=ROGUE, **UNBOUND)
    assert set(found.targets.values()) == {1.0}
    assert found.guarantee.total <= 1.0 * (1 + 1e-9)


def test_a_policy_cannot_add_a_group(plan, monkeypatch):
    """Break: the proposal's groups taken as they are."""
    proposing(monkeypatch, lambda groups, epsilon: Proposal({"vip": epsilon} | {g.name: epsilon / 2 for g in groups}))
    found = plan(noise=ROGUE, **UNBOUND)
    assert [g.name for g in found.mechanism.groups] == ["free", "paid"]
    assert found.targets == {"free": 4.0, "paid": 4.0}
    assert found.guarantee.total <= 4.0 * (1 + 1e-9)


def test_a_policy_that_refuses_is_quoted_in_one_line(plan):
    """With the place in the spec. Break: a `PluginError` let through (a traceback for the user)."""
    with pytest.raises(ArgumentError, match=r"noise\.epsilon: these groups\\n  are too small$") as caught:
        plan(noise={"type": "tests.plans:Refusing"}, **UNBOUND)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ArgumentError, match=r"spec\.yaml.* noise\.epsilon\.gone: \"gone\" is no group of this spec"):
        plan(noise={"type": "scale", "epsilon": {"free": 8.0, "paid": 4.0, "other": 2.0, "gone": 1.0}}, **UNBOUND)


# --- what is told -------------------------------------------------------------------------------------------


def test_the_document_is_plain_data(plan):
    """Break: a tuple, a path or a NaN in it."""
    document = plan(**TIERED).document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["charges"] == []
    assert document["population"] == {"users": 1000.0, "holdout_users": None, "from": "declared"}
    assert [p["kind"] for p in document["plugins"]] == ["source", "segmentation", "noise"]
    assert document["plugins"][2]["target"] == "policies.noise.scale:Scale"
    assert document["origins"]["privacy.accountant"] == "default"
    assert "spec.yaml:" in document["origins"]["privacy.epsilon"]
    assert document["mechanism_digest"] == plan(**TIERED).mechanism.digest


def test_where_uudp_is_installed_is_not_told():
    """Break: hand out origins as they are."""
    origins = make_plan(load_spec("quickstart")).document()["origins"]
    assert origins["train.steps"].startswith("specs/quickstart.yaml:")
    assert not any(place.startswith("/") for place in origins.values())


def test_notes_say_what_a_reader_should_know(plan):
    """Break: any one of them left out."""
    usage = {"segmentation": USAGE, "data": {"weights": {"few": 0.7, "many": 0.3}}}
    assert any("which user is in which group is private" in note for note in plan(**usage).notes())
    assert any("counted in the data" in note for note in plan(data={"population": "public"}).notes())
    held = plan(data={"holdout": {"users": 0.1}})
    assert any("Hold-out users gave up protection" in note for note in held.notes())
    shown = plan(data={"visibility": "public"}, evaluation={"ordinary": True})
    assert any("declared public: a demonstration" in note for note in shown.notes())
    assert any("also trained without clipping and noise" in note for note in shown.notes())
    assert plan().notes() == ['The data set "posts" has no budget: the ledger records runs without a limit.']
    unrecorded = dataclasses.replace(plan(), ledger=None)
    assert unrecorded.notes() == ["No ledger (privacy.ledger: null): what runs on this data set spend is not recorded."]


def test_noise_to_signal(plan):
    """Noise std over the largest norm of the group's expected sum. Break: the clip norm left out."""
    mechanism = plan(**TIERED).mechanism
    for i, weight in enumerate(THREE.values()):
        expected = mechanism.noise_multiplier(i) / (20 * weight)
        assert noise_to_signal(mechanism, i) == pytest.approx(expected)


def test_canaries_change_the_denominator_and_nobody_s_epsilon(tmp_path):
    """Break: canaries counted among the users when rates or noise are calibrated."""
    attributes = {"segmentation": ATTRIBUTE, "noise": {"type": "scale", "epsilon": {"free": 8, "paid": 4, "other": 2}}}
    plain = make_plan(write_spec(tmp_path, **attributes))
    audited = make_plan(write_spec(tmp_path, audit={"one_run": {"canaries": 41}, "extraction": {}}, **attributes))
    assert audited.guarantee.epsilon == plain.guarantee.epsilon
    assert audited.mechanism.noise_std == plain.mechanism.noise_std
    assert sum(g.canaries for g in audited.mechanism.groups) == 41 + 20
    more = sum(g.canaries * g.sampling_rate for g in audited.mechanism.groups)
    assert audited.mechanism.denominator(0) == pytest.approx(plain.mechanism.denominator(0) + more)
    assert audited.mechanism.planted([0, 0]) == plain.mechanism
