"""Plain sentences, computed from numbers."""

from __future__ import annotations

import pytest

from harness.reporting.explain import headline, spending
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


def test_charges_are_composed() -> None:
    assert spending([]).startswith("All of it went into training.")
    assert spending([{"what": "a", "epsilon": 0.4}]).startswith("Training and one more answer drew on private data.")
    assert "2 more answers" in spending([{"what": "a"}, {"what": "b"}])
