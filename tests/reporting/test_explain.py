"""Plain sentences, computed from numbers."""

from __future__ import annotations

from typing import Any

import pytest

from harness.reporting.explain import group_reason, headline, spending
from harness.reporting.summary import Losses


@pytest.mark.parametrize(
    ("losses", "private", "sentence"),
    [
        (
            Losses(4.871, 4.318, 4.207, 0.553, 0.664, 0.553 / 0.664),
            True,
            "Private training took 0.553 nats per token off the base model’s loss: 83 % of what ordinary training took "
            "off (0.664).",
        ),
        (
            Losses(4.9, 4.4, None, 0.5, None, None),
            False,
            "Training took 0.500 nats per token off the base model’s loss.",
        ),
        (
            Losses(4.9, 5.0, None, -0.1, None, None),
            True,
            "Private training did not help: the loss is 0.100 nats per token higher than the base model’s.",
        ),
        (
            Losses(None, 5.0, None, None, None, None),
            True,
            "Private training ended at 5.000 nats per token; the base model was not measured.",
        ),
        (Losses(4.9, None, None, None, None, None), True, "This run was not evaluated."),
    ],
)
def test_headline(losses: Losses, private: bool, sentence: str) -> None:
    assert headline(losses, private) == sentence


def test_stricter_groups_are_compared_with_the_loosest(plan: dict[str, Any]) -> None:
    few, _, many = plan["groups"]
    assert group_reason(few, plan["groups"]) == (
        "The loosest target, ε 8: the noise is 0.59 times the most that one of these users can move a step’s sum "
        "(gradients are clipped to norm 0.601)."
    )
    assert group_reason(many, plan["groups"]) == (
        "A stricter target, ε 2. Gradients are clipped 47 % harder than in “few” (to norm 0.32), so each user stands "
        "out less: the noise is 1.1 times the most that one of these users can move a step’s sum."
    )


def test_equal_groups_are_told_so(plan: dict[str, Any]) -> None:
    same = [group | {"noise_multiplier": 0.7, "clip_norm": 0.5} for group in plan["groups"]]
    assert group_reason(same[1], same).startswith("Protected like every other group: the noise is 0.7 times")
    assert group_reason(same[0], same[:1]).startswith("Every user has the same protection")


def test_a_different_sampling_rate_is_mentioned(plan: dict[str, Any]) -> None:
    plan["groups"][2]["sampling_rate"] = 0.01
    assert group_reason(plan["groups"][2], plan["groups"]).endswith("drawn with probability 1 % in each of 20 steps.")


def test_no_noise_and_unknown_noise(plan: dict[str, Any]) -> None:
    bare = plan["groups"][0] | {"noise_multiplier": 0.0}
    assert group_reason(bare, [bare]) == (
        "No noise is added, so nothing bounds what the model reveals about these users."
    )
    assert group_reason({"name": "x"}, [{"name": "x"}]) == "The plan states no noise for this group."


def test_charges_are_composed() -> None:
    assert spending([]).startswith("All of it went into training.")
    assert spending([{"what": "a", "epsilon": 0.4}]).startswith("Training and one more answer drew on private data.")
    assert "2 more answers" in spending([{"what": "a"}, {"what": "b"}])


def test_groups_that_differ_in_how_often_they_are_drawn(plan: dict[str, Any]) -> None:
    """One noise for all does not mean one protection. Break: look at the noise multiplier alone."""
    alike = {"noise_multiplier": 0.5, "clip_norm": 0.5, "steps": 20}
    rates = (0.04, 0.02, 0.01)
    groups = [group | alike | {"sampling_rate": rate} for group, rate in zip(plan["groups"], rates, strict=True)]
    noise = "Each time, the noise is 0.5 times the most that one of these users can move a step’s sum"
    assert group_reason(groups[0], groups) == (
        f"The loosest target, ε 8. A user is drawn with probability 4 % in each of 20 steps. {noise} "
        "(gradients are clipped to norm 0.5)."
    )
    assert group_reason(groups[2], groups) == (
        "A stricter target, ε 2. Users are drawn 75 % less often than in “few”: with probability 1 % in each of 20 "
        f"steps. {noise} (gradients are clipped to norm 0.5)."
    )
