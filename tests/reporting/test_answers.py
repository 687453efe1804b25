"""What a report says of sampling by example, further levers, schedules, adaptive clipping, charges and the ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.reporting import answers, view
from harness.reporting.model_card import model_card
from harness.reporting.moving import moving
from harness.reporting.reasons import group_reason
from harness.reporting.records import RunRecord, read_run
from harness.reporting.report import write_report
from tests.reporting.kinds import KINDS, LEDGER
from tests.reporting.test_report import words

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def record(make_run: Callable[..., Path]) -> Callable[[str], RunRecord]:
    return lambda kind: read_run(make_run(*KINDS[kind]()))


@pytest.fixture
def shown(make_run: Callable[..., Path]) -> Callable[[str], str]:
    return lambda kind: words(write_report(make_run(*KINDS[kind]())).read_text(encoding="utf-8"))


def test_the_noise_of_a_private_loss_by_hand(record: Callable[[str], RunRecord]) -> None:
    """z·b/n per group, and z·b·√groups/n of the whole, n = 1276.4/9. Red when a weight or the root is dropped."""
    found = answers.loss_noise(record("noisy"))
    users = 1276.4 * 0.1 / 0.9
    assert found["many"] == pytest.approx(1.0396 / (users * 0.1))
    assert found["few"] == pytest.approx(1.0396 / (users * 0.6))
    assert found[""] == pytest.approx(1.0396 * 3**0.5 / users)
    assert answers.first_noise() == 4


def test_a_public_holdout_has_no_noise_and_says_nothing_of_it(
    record: Callable[[str], RunRecord], shown: Callable[[str], str]
) -> None:
    """Red when the visibility is not asked."""
    assert answers.loss_noise(record("plain")) == {}
    assert answers.holdout_line(record("plain")) == ""
    assert "oisy" not in shown("plain").replace("noise", "")


def test_private_losses_are_called_noisy_with_their_noise(shown: Callable[[str], str]) -> None:
    """Everywhere: above, at both numbers, at the curve, per group. Red when one place loses the word."""
    text = shown("noisy")
    for part in (
        "Noisy. Hold-out users are protected too", "standard deviation of 0.013 nats per token, and of 0.051 in the",
        "4.871 ± 0.051", "4.318 ± 0.013", "Noisy hold-out loss; bars are one standard deviation",
        "Noisy hold-out loss in nats per token", "4.661 → 4.218 ± 0.073",
        "5 noisy evaluations (noise 1.04 × what one of them can change, each) cost them ε 8.00",
    ):  # fmt: skip
        assert part in text, part
    assert "gave up protection" not in text


def test_charges_are_named_with_noise_and_price(shown: Callable[[str], str]) -> None:
    """ε rounded up. Red when the noise, or the heading that it is the price of each alone, is left out."""
    text = shown("noisy")
    assert "ε, if it stood alone" in text
    assert "users per group noise 30 × what one user can change 0.11" in text
    assert "if it stood alone" not in shown("plain")
    assert "1,276 users counted with noise, and charged" in text


def test_the_ledger_shows_what_was_spent_and_no_password(shown: Callable[[str], str]) -> None:
    """Red when the plan's URL is shown as it stands."""
    text = shown("noisy")
    assert "Entered in the ledger postgresql://db/uudp. When this run was planned, ε 12 was left" in text
    assert "Other runs on these data had spent ε 4.50; this run adds ε 8.00." in text
    assert "Receipt: entry 41, sealed 9f9f9f9f9f9f9f9f…" in text
    planned = RunRecord({}, {"ledger": dict(LEDGER)}, {}, ())
    assert "secret" not in " ".join(answers.ledger_lines(planned))


def test_example_sampling_names_the_unit_everywhere(shown: Callable[[str], str]) -> None:
    """Red when one of the sentences keeps the word "user" for what a step draws."""
    text = shown("examples")
    for part in (
        "Poisson, by example 128 examples expected per step, at most 1 to 8, by group, examples kept of each user",
        "each keeps at most 5 of their examples in place of 8, chosen once for the whole run",
        "each keeps at most 1 of their examples in place of 8, chosen once",
        "and what one example contributes is clipped",
        "the most that one example can move a step’s sum", "a kept example’s chance to be drawn",
        "Kept examples", "ε covers all that a user keeps",
    ):  # fmt: skip
        assert part in text, part
    assert "a user’s chance" not in text
    assert "Kept examples" not in shown("plain")


def test_participation_says_how_many_steps(shown: Callable[[str], str]) -> None:
    """Red when groups with one noise and one clip norm are called alike."""
    text = shown("steps")
    assert "At most ε = 8, the loosest target." in text
    assert "The group takes part in all 20 steps." in text
    assert "At most ε = 2, a quarter of the loosest group’s." in text
    assert "The group takes part in 2 of 20 steps, spread evenly and publicly known" in text
    assert "as every other group" not in text


def test_a_schedule_is_drawn_in_steps(record: Callable[[str], RunRecord], shown: Callable[[str], str]) -> None:
    """Red when stretches are drawn as slopes, or the chart is left out."""
    found = moving(record("schedule"))
    assert found is not None
    assert "noise ends at 0.573 times that of the first step; clip norm ends at 1 times" in found["chart"]
    line = next(part for part in found["chart"].split('class="line"') if "M" in part and "L" in part)
    assert line
    assert "A public plan, fixed before the run" in shown("schedule")
    assert "4 constant parts public; each step accounted at its own noise" in shown("schedule")
    assert moving(record("plain")) is None


def test_an_adaptive_clip_shows_its_factor(record: Callable[[str], RunRecord], shown: Callable[[str], str]) -> None:
    """Red when the factor of another series is read."""
    found = moving(record("adaptive"))
    assert found is not None
    assert "After 20 steps they are 1.39 times those of the first step." in found["chart"]
    text = shown("adaptive")
    assert (
        "noisy count of the users whose gradient lies below its group’s norm, towards 50 % (noise on the count: 1.6)"
        in text
    )
    assert "Clipping adaptive so that 50 % lie below, by a noisy count" in text


def test_candidates_and_the_one_that_was_taken(record: Callable[[str], RunRecord], shown: Callable[[str], str]) -> None:
    """Red when another row is ticked, or one is before the median is known."""
    run = record("chosen")
    found = answers.candidates(run)
    assert found is not None
    assert [row["chosen"] for row in found["rows"]] == [False, True, False, False]
    waiting = dict(run.plan) | {"median_examples_per_user": None}
    found = answers.candidates(RunRecord(run.spec, waiting, run.privacy, run.metrics))
    assert found is not None
    assert not any(row["chosen"] for row in found["rows"])
    assert "The noisy median of examples per user came to 5.4" in shown("chosen")
    assert answers.candidates(record("plain")) is None


def test_damaged_documents_are_no_traceback(make_run: Callable[..., Path]) -> None:
    """What is not a number, a list or a block is left out. Red when one of these is trusted."""
    for kind, make in KINDS.items():
        for key in ("schedule", "candidates", "charges", "holdout", "clipping", "ledger", "population"):
            for wrong in (None, "x", 3, [1], {"steps": "x"}):
                plan, privacy, metrics = make()
                plan[key] = wrong
                assert write_report(make_run(plan, privacy, metrics)).exists(), kind


def test_reasons_by_hand() -> None:
    """A single group under example sampling. Red when the unit is not handed on."""
    group: dict[str, Any] = {"name": "all", "noise_multiplier": 1.5, "clip_norm": 0.5, "examples_per_user": 3}
    plan = {"groups": [group], "sampling": {"unit": "example"}}
    reason = group_reason(group, plan)
    assert "1.5 times the most that one example can move" in reason
    assert "one user can move" in group_reason(group, {"groups": [group]})


@pytest.mark.chromium
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_every_kind_fits_a_phone(show: Callable[..., Any], make_run: Callable[..., Path], kind: str) -> None:
    """Red when a table or a chart is wider than the window."""
    page = show(write_report(make_run(*KINDS[kind]())), 320, dark=True)
    page.page.evaluate("document.querySelectorAll('details').forEach(block => block.open = true)")
    assert page.page.evaluate(OVERFLOW) == 0
    assert page.complaints == []


def test_the_model_card_names_every_noisy_answer(make_run: Callable[..., Path]) -> None:
    """Red when charges, or the evaluations of private hold-out users, are left out of the card."""
    plan, privacy, metrics = KINDS["noisy"]()
    privacy["charges"] = [{"what": "users per group", "noise_multiplier": 30.0, "count": 1}]
    card = model_card(make_run(plan, privacy, metrics))
    assert "- users per group: noise 30 × what one user can change\n" in card
    assert "noise 1.04 × what one of them can change, 5 times; all losses that are published are noisy" in card
    assert "these noisy answers" not in model_card(make_run())


@pytest.mark.parametrize(
    ("kind", "words"), [("lora", "A LoRA adapter for `"), ("norms", "New norm layers for `"), ("bias", "New biases (")]
)
def test_the_model_card_says_what_was_trained(make_run: Callable[..., Path], kind: str, words: str) -> None:
    plan, privacy, metrics = KINDS["noisy"]()
    plan["model"]["adapter"] = {"type": kind}
    card = model_card(make_run(plan, privacy, metrics))
    assert f"\n{words}" in card
    assert f"\n- {kind}\n" in card


def test_risk_tiers_are_told_by_their_edges(record: Callable[[str], RunRecord]) -> None:
    """Which are public, or noisy answers. Red when the source of the edges, or an edge, is left out."""
    plain = record("plain")
    assert answers.tiers(plain) is None
    tiers: dict[str, Any] = {
        "names": ["low", "mid", "high"],
        "edges": [0.2, 0.4312],
        "from": "declared",
        "quantiles": [],
    }
    told = answers.tiers(replace(plain, plan={**plain.plan, "tiers": tiers}))
    assert told == ("low below 0.2, mid below 0.431, high from there on", "edges declared in the spec")
    tiers |= {"from": "noisy", "quantiles": [0.5, 0.9]}
    noisy = replace(plain, plan={**plain.plan, "tiers": tiers})
    assert answers.tiers(noisy) == (told[0], "noisy quantiles (0.5, 0.9) of the score, charged")
    facts = {fact.name: (fact.value, fact.note) for fact in view._how(noisy)}
    assert facts["Risk tiers"] == answers.tiers(noisy)
    tiers["edges"] = None
    assert answers.tiers(noisy) == ("low, mid, high", "noisy quantiles (0.5, 0.9) of the score, charged")
