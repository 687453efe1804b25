"""Why each group has the noise it has: the sentences of real plans, word for word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.planning import make_plan
from harness.reporting.reasons import explained, group_reason
from tests.plans import ATTRIBUTE, merged, write_spec

BLOCKS: dict[str, Any] = {
    "privacy": {"accountant": "rdp"},
    "segmentation": ATTRIBUTE,
    "data": {"weights": {"free": 0.7, "paid": 0.2, "other": 0.1}},
    "train": {"steps": 200},
    "sampling": {"expected": 50},
}
TARGETS = {"free": 8, "paid": 4, "other": 2}
NEAR = {"free": 8, "paid": 6, "other": 5}
ALIKE = "Its users are drawn as often as everybody else"


def reasons(folder: Path, **blocks: Any) -> dict[str, str]:
    document = explained(make_plan(write_spec(folder, **merged(BLOCKS, blocks))).document())
    return {g["name"]: g["reason"] for g in document["groups"]}


def most(times: str, unit: str = "user") -> str:
    return f"Relative to that, the noise is {times} times the most that one {unit} can move a step’s sum"


def test_uniform(tmp_path: Path) -> None:
    """Break: a group without a stricter one called the loosest."""
    found = reasons(tmp_path, noise={"type": "uniform"})
    assert found["other"] == (
        f"At most ε = 8, as every other group. {ALIKE}, and what one of them contributes is clipped at 0.5, as "
        f"everybody’s. {most('0.83')}, as in every group."
    )


def test_scale(tmp_path: Path) -> None:
    """Break: the clip norm of another group as the one in place of which it is."""
    found = reasons(tmp_path, noise={"type": "scale", "epsilon": TARGETS})
    assert found["free"] == (
        f"At most ε = 8, the loosest target. {ALIKE}, and what one of them contributes is clipped at 0.562. "
        f"{most('0.83')}."
    )
    assert found["other"] == (
        f"At most ε = 2, a quarter of the loosest group’s. {ALIKE}, and what one of them contributes is clipped at "
        f"0.261 in place of 0.562. {most('1.8')}, 2.2 times what it is for “free”."
    )


def test_sample(tmp_path: Path) -> None:
    """One noise for all does not mean one protection. Break: look at the noise multiplier alone."""
    found = reasons(tmp_path, noise={"type": "sample", "epsilon": TARGETS})
    assert found["paid"] == (
        "At most ε = 4, half the loosest group’s. Its users are drawn 51 % less often than those of “free”, with "
        "probability 2.98 % in a step in place of 6.11 %, and what one of them contributes is clipped at 0.5, as "
        f"everybody’s. {most('0.91')}, as in every group."
    )


def test_product(tmp_path: Path) -> None:
    """Both levers. Break: one of them left out."""
    found = reasons(tmp_path, noise={"type": "product", "epsilon": TARGETS})
    assert found["other"] == (
        "At most ε = 2, a quarter of the loosest group’s. Its users are drawn 45 % less often than those of “free”, "
        "with probability 3.05 % in a step in place of 5.57 %, and what one of them contributes is clipped at 0.363 in "
        f"place of 0.534. {most('1.3')}, 1.5 times what it is for “free”."
    )


def test_participation(tmp_path: Path) -> None:
    """Break: the steps left out, though nothing else differs."""
    found = reasons(tmp_path, noise={"type": "participation", "epsilon": NEAR})
    begin = f"{ALIKE}, and what one of them contributes is clipped at 0.5, as everybody’s. The group takes part in"
    assert found["free"].startswith(f"At most ε = 8, the loosest target. {begin} all 200 steps.")
    assert found["paid"] == (
        f"At most ε = 6, three quarters of the loosest group’s. {begin} 95 of 200 steps, spread evenly and publicly "
        f"known; in the others none of its users is drawn. {most('0.83')}, as in every group."
    )


def test_contribution(tmp_path: Path) -> None:
    """Break: kept examples told of sampled users as well, or the unit left at user."""
    found = reasons(
        tmp_path,
        noise={"type": "contribution", "epsilon": NEAR},
        privacy={"accountant": "pld"},
        sampling={"unit": "example", "expected": 200, "examples_per_user": 8},
        train={"steps": 50},
    )
    assert found["other"] == (
        "At most ε = 5, 62 % of the loosest group’s. The kept examples of its users are drawn as often as everybody’s, "
        "each keeps at most 5 of their examples in place of 8, chosen once for the whole run, and what one example "
        f"contributes is clipped at 0.5, as everybody’s. {most('1.3', 'example')}, as in every group."
    )


def test_schedule(tmp_path: Path) -> None:
    """Break: the direction turned round, or clip norms told as noise."""
    found = reasons(tmp_path, noise={"type": "schedule", "shape": "step", "end": 0.52, "epsilon": TARGETS})
    assert found["paid"].endswith(
        f"{most('2.0')}, 1.4 times what it is for “free”. These are the first step’s numbers: by a public schedule, "
        "the noise falls to 0.52 times that at the end, and every step is accounted at its own."
    )
    grown = reasons(tmp_path, noise={"type": "schedule", "shape": "step", "over": "clip", "end": 2, "epsilon": TARGETS})
    assert "by a public schedule, clip norms rise to 2 times that at the end" in grown["paid"]


def test_adaptive(tmp_path: Path) -> None:
    """Break: an adaptive clip norm told as the run's."""
    found = reasons(tmp_path, noise={"type": "scale", "epsilon": TARGETS}, clipping={"type": "adaptive"})
    assert found["other"].endswith(
        "2.3 times what it is for “free”. These are the first step’s numbers: all clip norms follow one noisy count, "
        "and the noise follows them, so that the ratio stays."
    )


def test_risk_proportional(tmp_path: Path) -> None:
    """Break: the strength left out of the formula."""
    noise = {"type": "risk_proportional", "risk": {"free": 0, "paid": 0.5, "other": 1}, "strength": 3}
    assert reasons(tmp_path, noise=noise)["paid"] == (
        "At most ε = 3.2, 40 % of the loosest group’s. The spec puts its risk at 0.5 of 1, and 8 / (1 + 3 × 0.5) is "
        f"that ε. {ALIKE}, and what one of them contributes is clipped at 0.361 in place of 0.573. {most('1.3')}, 1.6 "
        "times what it is for “free”."
    )


def test_one_group_no_noise_and_unknown_noise(tmp_path: Path) -> None:
    """Break: a group compared with itself."""
    found = reasons(tmp_path, segmentation=None, data={"weights": None})
    assert found["everyone"].startswith("At most ε = 8, with one protection for everybody. Its users are drawn with")
    assert found["everyone"].endswith(f"{most('0.83')}.")
    bare = {"name": "x", "noise_multiplier": 0.0}
    assert group_reason(bare, {"groups": [bare]}) == (
        "No noise is added, so nothing bounds what the model reveals about these users."
    )
    assert group_reason({"name": "x"}, {}) == "The plan states no noise for this group."


def test_nothing_is_said_of_how_many_there_are(tmp_path: Path) -> None:
    """Noisy weights, or given ones: the sentences are the same. Break: tell of a group's share, or of its users."""
    noise = {"type": "uniform"}
    first = reasons(tmp_path, noise=noise, data={"weights": {"free": 0.7, "paid": 0.2, "other": 0.1}})
    second = reasons(tmp_path, noise=noise, data={"weights": {"free": 0.1, "paid": 0.1, "other": 0.8}})
    assert first == second
    counted = reasons(tmp_path, noise={"type": "scale", "epsilon": TARGETS}, data={"weights": "noisy"})
    assert all(
        text.endswith("Some of it waits for noisy answers, which can’t raise its ε.") for text in counted.values()
    )


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'])
def test_names_are_escaped_in_the_report(name: str, plan: dict[str, Any], make_run: Any) -> None:
    """Break: the sentence marked as safe."""
    from harness.reporting.report import write_report

    plan["groups"][0]["name"] = name
    page = write_report(make_run(plan)).read_text()
    assert "times what it is for “" in page
    assert name not in page
