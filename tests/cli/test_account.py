"""``uudp account``: known values, and what it refuses."""

from __future__ import annotations

import json
import re

import pytest

from harness.cli import main

NUMBERS = {"--noise-multiplier": "1", "--rate": "0.01", "--steps": "1000", "--delta": "1e-5"}


def arguments(*more: str, **changes: str) -> list[str]:
    given = {**NUMBERS, **{"--" + k.replace("_", "-"): v for k, v in changes.items()}}
    return ["account", *(part for pair in given.items() for part in pair), *more]


@pytest.mark.parametrize(("accountant", "lowest", "highest"), [("pld", 1.82823, 1.82842), ("rdp", 2.10136, 2.10138)])
def test_known_values(accountant: str, lowest: float, highest: float, capsys: pytest.CaptureFixture[str]) -> None:
    """1.82824 by PLD (never less, and at most 0.01 % more, for the grid) and 2.10137 by RDP.

    Break: account T − 1 steps.
    """
    assert main.run_app(arguments("--accountant", accountant, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert lowest <= document["epsilon"] <= highest
    assert (document["delta"], document["accountant"]) == (1e-5, accountant)


def test_a_line_for_people_and_pld_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(arguments()) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"ε = 1\.828[234]\d at δ = 1e-05 \(pld\)\n", out)
    assert err == ""


def test_one_full_step_is_the_plain_gaussian(capsys: pytest.CaptureFixture[str]) -> None:
    """σ = 1 without sampling: 4.377178 exactly."""
    assert main.run_app(arguments("--json", rate="1", steps="1")) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(4.377178, abs=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": "0"}, "--noise-multiplier: must be from 1e-06 to 1e+06, found 0.0"),
        ({"noise_multiplier": "1e-300"}, "--noise-multiplier: must be from 1e-06 to 1e+06, found 1e-300"),
        ({"noise_multiplier": "nan"}, "--noise-multiplier: must be from 1e-06 to 1e+06, found nan"),
        ({"noise_multiplier": "inf"}, "--noise-multiplier: must be from 1e-06 to 1e+06, found inf"),
        ({"rate": "0"}, "--rate: must be from 1e-08 to 1, found 0.0"),
        ({"rate": "1.5"}, "--rate: must be from 1e-08 to 1, found 1.5"),
        ({"rate": "nan"}, "--rate: must be from 1e-08 to 1, found nan"),
        ({"steps": "0"}, "--steps: must be from 1 to 50000, found 0"),
        ({"steps": "50001"}, "--steps: must be from 1 to 50000, found 50001; --accountant rdp takes more"),
        ({"steps": "2000000", "accountant": "rdp"}, "--steps: must be from 1 to 1e+06, found 2000000"),
        ({"delta": "1e-13"}, "--delta: must be from 1e-12 to 0.1, found 1e-13"),
        ({"delta": "1"}, "--delta: must be from 1e-12 to 0.1, found 1.0"),
        ({"accountant": "PLD"}, '--accountant: must be pld or rdp, found "PLD"; did you mean "pld"?'),
        ({"accountant": "pdl"}, '--accountant: must be pld or rdp, found "pdl"; did you mean "pld"?'),
    ],
)
def test_wrong_numbers(changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(arguments(**changes)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"uudp: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--noise-multiplier", "--rate", "--steps", "--delta"])
def test_all_four_numbers_are_needed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = arguments()
    at = whole.index(option)
    assert main.run_app(whole[:at] + whole[at + 2 :]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--steps", "many"), ("--steps", "1.5"), ("--rate", "often")])
def test_what_is_no_number(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run_app(arguments(**{option.removeprefix("--"): value})) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("uudp: ")
    assert option in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("examples", "expected"), [(None, 0.2523), ("1", 0.2523), ("4", 1.1231), ("16", 5.1033)])
def test_example_sampling(examples: str | None, expected: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Published values at a grid of 1e-4: never more than they say, and hardly less.

    Red when the number of examples does not reach the event.
    """
    more = [] if examples is None else ["--examples-per-user", examples]
    assert main.run_app(arguments("--json", *more, rate="1e-3", steps="2000", delta="1e-6")) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("law", "more", "expected"),
    [
        ("geometric", (), 4.1033),
        ("logarithmic", (), 3.5226),
        ("poisson", (), 4.3295),
        ("negative_binomial", ("--trials-shape", "1"), 4.1033),
    ],
)
def test_the_price_of_selection(
    law: str, more: tuple[str, ...], expected: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Rényi DP, without being told to. Red when two laws change places, or when the winner's own ε is printed."""
    assert main.run_app(arguments("--json", "--trials", law, "--trials-mean", "10", *more)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["epsilon"] == pytest.approx(expected, abs=1e-4)
    assert document["accountant"] == "rdp"


def test_selection_over_example_sampling(capsys: pytest.CaptureFixture[str]) -> None:
    """One example per user is the same as one user. Red when selection forgets the number of examples."""
    found = {}
    for examples in ("1", "2"):
        more = ("--trials", "geometric", "--trials-mean", "10", "--examples-per-user", examples)
        assert main.run_app(arguments("--json", *more)) == 0
        found[examples] = json.loads(capsys.readouterr().out)["epsilon"]
    assert found["1"] == pytest.approx(4.1033, abs=1e-4)
    assert found["2"] > 1.5 * found["1"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--examples-per-user", "0"), "--examples-per-user: must be from 1 to 1e+06, found 0"),
        (("--trials", "geometric"), "--trials needs --trials-mean: the mean number of trials"),
        (("--trials-mean", "10"), "--trials-mean and --trials-shape need --trials: the law of the number of trials"),
        (("--trials-shape", "1"), "--trials-mean and --trials-shape need --trials: the law of the number of trials"),
        (
            ("--trials", "geometrc", "--trials-mean", "10"),
            '--trials: must be geometric, logarithmic, negative_binomial or poisson, found "geometrc"; did you mean '
            '"geometric"?',
        ),
        (
            ("--trials", "geometric", "--trials-mean", "0.5"),
            "--trials: the mean number of trials must be from 1 to 1e+06, found 0.5",
        ),
        (
            ("--trials", "geometric", "--trials-mean", "nan"),
            "--trials: the mean number of trials must be from 1 to 1e+06, found nan",
        ),
        (
            ("--trials", "negative_binomial", "--trials-mean", "9"),
            "--trials: negative_binomial needs a shape",
        ),
        (
            ("--trials", "negative_binomial", "--trials-mean", "9", "--trials-shape", "0"),
            "--trials: the shape must be above 0 and at most 1000, found 0.0",
        ),
        (
            ("--trials", "poisson", "--trials-mean", "9", "--trials-shape", "2"),
            "--trials: poisson has no shape; only negative_binomial does",
        ),
        (
            ("--trials", "poisson", "--trials-mean", "9", "--accountant", "pld"),
            "--accountant: the price of --trials is only known by Rényi DP; say rdp, or leave it out",
        ),
    ],
)
def test_questions_without_an_answer(more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Red when an option is ignored: ε would be that of another question."""
    assert main.run_app(arguments(*more)) == 2
    assert capsys.readouterr() == ("", f"uudp: {message}\n")


def test_numbers_that_protect_nobody_give_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    for accountant in ("pld", "rdp"):
        code = main.run_app(arguments("--json", accountant=accountant, noise_multiplier="1e-6", rate="1", steps="9"))
        out, err = capsys.readouterr()
        if code == 0:  # an honest, huge ε is an answer too
            assert json.loads(out)["epsilon"] > 1e9
        else:
            assert code == 2
            assert out == ""
            assert "protects nobody" in err or "can't settle" in err


def test_the_accountant_that_answered_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Above ε = 1000 it is RDP. Break: name the one that was asked for."""
    assert main.run_app(arguments("--json", noise_multiplier="0.01")) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["accountant"], document["epsilon"] > 1000) == ("rdp", True)
