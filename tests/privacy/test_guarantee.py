"""The words and numbers of privacy.json: true, rounded up, and different where the promise differs."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.privacy.guarantee import Entered, Guarantee, _up
from harness.privacy.mechanism import GroupMechanism, Mechanism

GROUP = GroupMechanism("free", 600.0, 0.02, 1.0, 40, 1)
MECHANISM = Mechanism(40, 1.0, (GROUP, dataclasses.replace(GROUP, name="paid")), "add_or_remove")
GUARANTEE = Guarantee(MECHANISM, (7.9912, 4.0), 1e-5, "pld", "posts", "private", 0.1, False, ())


def told(**changes):
    """The paragraph of a guarantee with other fields."""
    return dataclasses.replace(GUARANTEE, **changes).statement()


def test_the_paragraph_says_who_what_and_how_much():
    """Break: the mean of the groups' ε in place of the largest, or δ left out."""
    text = told()
    for piece in ['"posts"', "ε = 8.00 and δ = 1e-05", "PLD accountant", "The unit of protection is the user"]:
        assert piece in text
    assert "RDP accountant" in told(accountant="rdp")


def test_of_public_trials_nothing_is_claimed():
    """Several of them together cost more than one. Break: the statement of one; `private` by the noise alone."""
    found = GUARANTEE.of_public_trials().document("finished", 40)
    assert (found["private"], found["public_trials"], found["epsilon"], found["delta"]) == (False, True, None, None)
    assert all(group["epsilon"] is None for group in found["groups"])
    assert "NOTHING IS CLAIMED" in found["statement"]
    assert "NOT PRIVATE" not in found["statement"]
    assert "ε = " not in json.dumps(found, ensure_ascii=False)
    assert GUARANTEE.document("finished", 40)["public_trials"] is False


@settings(deadline=None, derandomize=True)
@given(st.floats(1e-6, 1e4))
@example(8.0)
@example(7.990000000001)
@example(0.0100009)
@example(5e-7)
@example(8.000000004)
def test_a_stated_epsilon_is_rounded_up(value):
    """Never below the truth by more than a part in a million, never above by more than a cent.

    Break: ``f"{value:.2f}"``, or a tolerance that is not relative.
    """
    stated = float(_up(value))
    assert stated >= value * (1 - 1.0001e-6)
    assert stated <= value + 0.01 + 1e-9
    assert re.fullmatch(r"\d+\.\d\d", _up(value))


def test_an_exact_target_is_stated_as_it_is():
    """Break: the tolerance taken out (8.000000004, an ulp of a calibration, would become 8.01)."""
    assert [_up(x) for x in (8.0, 8.000000004, 7.9912, 8.0001, 0.0)] == ["8.00", "8.00", "8.00", "8.01", "0.00"]


@settings(deadline=None, derandomize=True)
@given(st.floats(1e-12, 0.5))
@example(1.23456149e-6)
@example(1 / 12830)
def test_a_stated_delta_is_not_below_the_true_one(delta):
    """Break: ``{delta:g}``, which rounds to the nearest."""
    found = re.search(r"δ = ([0-9.e+-]+[0-9])[,. ]", told(delta=delta))
    assert found
    assert delta * (1 - 1e-12) <= float(found[1]) <= delta * (1 + 1.1e-3)


@pytest.mark.parametrize(
    ("epsilon", "factor"),
    [(0.1, "1.11"), (1.0, "2.72"), (2.302, "10.00"), (5.0, "149"), (8.0, "2,981"), (20.1, "10 to the power of 9")],
)
def test_the_odds_are_put_in_a_number_that_is_rounded_up(epsilon, factor):
    """e^ε for who does not count in nats. Break: the factor rounded to the nearest, or made of another group's ε."""
    assert f"by more than a factor of e^ε, about {factor}," in told(epsilon=(epsilon, epsilon / 2))


def test_the_paragraph_names_the_neighbours():
    """Zero-out where counts are public, adding or removing a user else. Break: one wording for both."""
    out = dataclasses.replace(MECHANISM, relation="zero_out")
    assert "all records of one user have been emptied, while that user is still counted" in told(mechanism=out)
    assert "all records of one more user than the other" in told()
    assert "emptied" not in told()
    assert "one more user" not in told(mechanism=out)
    assert dataclasses.replace(GUARANTEE, mechanism=out).adjacency == "zero-out"
    assert GUARANTEE.adjacency == "add or remove one user"


def test_groups_that_differ_are_mentioned_and_equal_ones_are_not():
    """Break: the sentence on groups left out, or its warning given for public groups."""
    assert "the largest over the groups" in told()
    assert "the largest over the groups" not in told(epsilon=(7.9912, 7.9911))
    private = "which group that is depends on the user's own records"
    assert private in told(own_records=True)
    assert private not in told()


def test_without_noise_nothing_is_promised():
    """Break: the ordinary paragraph for a mechanism without noise."""
    bare = dataclasses.replace(GUARANTEE, mechanism=MECHANISM.without_privacy(), epsilon=None, delta=None)
    assert bare.statement().startswith("NOT PRIVATE. ")
    assert "differential privacy" not in bare.statement()
    document = bare.document("finished", 40)
    assert (document["private"], document["epsilon"], document["delta"]) == (False, None, None)
    assert [g["epsilon"] for g in document["groups"]] == [None, None]


def test_the_document():
    """Every field, as plain data. Break: a field left out, or the digest of another mechanism."""
    document = GUARANTEE.document("running", 7)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    words = {key: document.pop(key) for key in ("statement", "assumptions", "not_covered")}
    assert document == {
        "private": True,
        "public_trials": False,
        "epsilon": 7.9912,
        "delta": 1e-5,
        "unit": "user",
        "adjacency": "add or remove one user",
        "accountant": "pld",
        "mechanism_digest": MECHANISM.digest,
        "mechanism": MECHANISM.to_dict(),
        "any_group": False,
        "groups": [{"name": "free", "epsilon": 7.9912}, {"name": "paid", "epsilon": 4.0}],
        "holdout": {"fraction": 0.1, "visibility": "public"},
        "charges": [],
        "data": {"name": "posts", "visibility": "private"},
        "ledger": None,
        "search": None,
        "computational": True,
        "status": "running",
        "steps_completed": 7,
    }
    assert words["statement"] == GUARANTEE.statement()
    assert words["assumptions"] == GUARANTEE.assumptions()
    assert words["not_covered"] == GUARANTEE.not_covered()


def test_what_the_guarantee_rests_on_and_leaves_out():
    """Break: any of these sentences left out, or the hold-out's given where nobody is held out."""
    assumed = "\n".join(GUARANTEE.assumptions())
    for piece in ("one person appears under one id", "secret key", "computational", "private folder"):
        assert piece in assumed
    counted = dataclasses.replace(GUARANTEE, counts_public=("the number of users",))
    assert "Declared public: the number of users." in counted.assumptions()
    assert "Declared public" not in assumed
    left_out = "\n".join(GUARANTEE.not_covered())
    for piece in ("about a person", "several ids", "Other runs", "base model", "Hold-out users (about 10 % of all"):
        assert piece in left_out
    assert "Hold-out" not in "\n".join(dataclasses.replace(GUARANTEE, holdout_fraction=0.0).not_covered())
    own = dataclasses.replace(GUARANTEE, own_records=True).not_covered()
    assert any("never publish them" in line for line in own)
    assert "never publish them" not in left_out


ENTERED = Entered("sqlite:///~/.uudp/ledger.db", "posts", "20260101-a", 7, "ab" * 32, 12.3456, 2.000001e-5, 0.3, False)


def others(entered: Entered | None, **changes) -> list[str]:
    return dataclasses.replace(GUARANTEE, ledger=entered, **changes).not_covered()


def test_other_runs_are_named_with_what_they_spent():
    """Rounded up. Red when a run with a ledger says there was none, or ε is rounded to the nearest."""
    start = "Other runs on the same data: their ε and δ add up. "
    assert start + "No ledger of them was kept." in others(None)
    spent = "When this run began, the ledger counted ε = 12.35 and δ = 2.00001e-05 for them in sum."
    assert start + spent in others(ENTERED)
    none = dataclasses.replace(ENTERED, spent_epsilon=0.0, spent_delta=0.0)
    assert start + "The ledger counted no other when this run began." in others(none)
    infinite = dataclasses.replace(ENTERED, spent_epsilon=None)
    said = "The ledger held a run without noise when this run began, which promises nothing to anybody."
    assert start + said in others(infinite)


def test_users_that_other_runs_held_out_are_not_protected():
    """Red when only this run's own hold-out is named, or a smaller one of another run is named as well."""
    more = "Users that other runs on these data held out (about 30 % of all"
    assert any(line.startswith(more) for line in others(ENTERED))
    assert any("Hold-out users (about 10 %" in line for line in others(ENTERED))
    for fraction in (0.3, 0.4):
        assert not any(line.startswith("Users that other runs") for line in others(ENTERED, holdout_fraction=fraction))
    file = dataclasses.replace(ENTERED, holdout_fraction=0.0, holdout_file=True)
    assert any(line.startswith("Users of the evaluation files of other runs") for line in others(file))
    assert not any("evaluation files of other" in line for line in others(file, holdout_file=True))


def test_the_receipt_is_in_the_papers():
    document = dataclasses.replace(GUARANTEE, ledger=ENTERED).document("finished", 40)
    assert document["ledger"] == dataclasses.asdict(ENTERED)
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
    assert GUARANTEE.document("finished", 40)["ledger"] is None


def test_canaries_are_named():
    """Break: the sentence left out, or said where there are none."""
    planted = dataclasses.replace(GUARANTEE, mechanism=MECHANISM.planted([30, 12]))
    assert any(line.startswith("42 made users (canaries)") for line in planted.assumptions())
    assert not any("canaries" in line for line in GUARANTEE.assumptions())
