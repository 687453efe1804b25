"""The audit of whole runs: it stays below the claim, finds broken mechanisms, and releases nobody's statistics.

Each training has a fixed key, so that these tests pass or fail for good. With the mechanism as it should be, an audit
at confidence 0.95 raises a false alarm in at most 5 % of runs; with it broken, `test_one_run.py` states how often it is
found.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.auditing import flow
from harness.auditing.flow import Claim, audit
from harness.errors import ArgumentError, MachineError
from harness.privacy.accounting import group_epsilon
from harness.privacy.mechanism import GroupMechanism, Mechanism
from harness.reporting.leaderboard.audits import MOST_TESTS
from harness.spec.audit_block import AuditBlock
from harness.training.job import Folder, Job
from tests.auditing import sabotage
from tests.tiny import make_mechanism
from tests.training.test_planting import planted_run

DELTA = 1e-5
AUDIT = {
    "one_run": {"canaries": 400, "guesses": 100},
    "extraction": {"secrets": 6, "digits": 3, "candidates": 20, "samples": 2},
    "user_inference": {"users": 20, "examples": 1},
    "reconstruction": {"texts": 3, "tokens": 6, "cohorts": [1, 2]},
}
LEVERS = {"steps": 10, "noise_std": 6.0, "rates": (0.5, 0.5), "clip_norms": (1.0, 1.0)}


def claimed(mechanism: Mechanism) -> list[float]:
    return [group_epsilon(mechanism, g, DELTA) for g in range(len(mechanism.groups))]


def write_claim(run_dir: Path, **more: Any) -> float:
    """A guarantee as a finished run has one; returns its ε."""
    mechanism = Job.load(run_dir).mechanism
    epsilons = claimed(mechanism)
    groups = [{"name": g.name, "epsilon": e} for g, e in zip(mechanism.groups, epsilons, strict=True)]
    stated = {"epsilon": max(epsilons), "delta": DELTA, "groups": groups, "any_group": False, **more}
    (run_dir / "privacy.json").write_text(json.dumps(stated))
    return max(epsilons)


def trained_run(
    new_run: Callable[..., Path], workers: Callable[[int], Any], what: str = "nothing", **options: Any
) -> Path:
    run_dir = planted_run(new_run, audit=AUDIT, levers=LEVERS, train={"checkpoint_every": 5}, **options)
    assert workers(1)(sabotage.trained, run_dir, what) == [None]
    write_claim(run_dir)
    return run_dir


def block(**changes: Any) -> AuditBlock:
    return AuditBlock.model_validate({**AUDIT, **changes})


def test_a_run_as_it_should_be(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Every attack ran, none found more than is claimed, and nothing of real users is released.

    Break: `parts["user_inference"]` left in the released document.
    """
    run_dir = trained_run(new_run, workers)
    found = audit(run_dir, block())
    assert found.violated is None
    document = json.loads((run_dir / "audit.json").read_text())
    assert document == json.loads(json.dumps(found.document))
    assert 0.5 < document["claimed"]["epsilon"] < 2
    tests = document["one_run"]
    assert {t["kind"] for t in tests} == {"gradient", "text"}
    # Three scores of directions and one of texts, over all and within two groups, share the confidence.
    assert len(tests) == (3 + 1) * 3
    assert tests[0]["confidence"] == pytest.approx(1 - 0.05 / len(tests))
    assert all(t["verdict"] != "violated" for t in tests)
    assert all(t["guesses"] == 100 for t in tests if t["group"] is None)
    assert document["verdict"] == "consistent"
    assert document["extraction"]["planted"]["secrets"] + document["extraction"]["left_out"]["secrets"] == 6
    assert [(s["cohort"], s["noise"]) for s in document["reconstruction"]["shares"]] == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]
    assert document["user_inference"] == {"private": True}
    private = json.loads((Folder(run_dir).private / "audit.json").read_text())
    assert private["user_inference"]["overall"]["members"] >= 1
    assert (Folder(run_dir).private / "audit.json").stat().st_mode & 0o777 == 0o600


def test_of_public_data_users_may_be_shown(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    run_dir = trained_run(new_run, workers, data={"visibility": "public"})
    document = audit(run_dir, block()).document
    assert "overall" in document["user_inference"]
    assert not (Folder(run_dir).private / "audit.json").exists()


@pytest.mark.parametrize(
    "what", ["a tenth of the noise", "the same noise at every step", "a second pass without noise", "no clip"]
)
def test_a_broken_mechanism_is_found(new_run: Callable[..., Path], workers: Callable[[int], Any], what: str) -> None:
    """Each at ε ≈ 1 claimed. Break: the score that finds it left out of `_gradient_scores`.

    The second pass is one without noise. One with noise of its own (two noisy sums of each cohort, both seen) comes to
    ε ≈ 1.45, and a bound from one run does not reach that far up: simulated without subsampling, at ε = 0.5, 1 and 2,
    δ from 1e-6 to 1e-4, and 200 to 3,200 guesses, at most 4 of 30 audits with 100,000 canaries found it, and none of 30
    with 20,000. What guards against it is that one object gives the steps and what is accounted (trap 4 of §13).
    """
    run_dir = trained_run(new_run, workers, what)
    found = audit(run_dir, AuditBlock.model_validate({"one_run": AUDIT["one_run"]}))
    assert found.violated is not None, found.document["one_run"]
    assert "is claimed" in found.violated
    assert found.document["verdict"] == "violated"


def test_what_was_not_noted_is_not_consistent(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """A full disk lost what a step showed: nothing found says nothing then. What is damaged is named, and not quoted.

    Break: `weak` empty.
    """
    run_dir = trained_run(new_run, workers)
    folder, asked = Folder(run_dir), AuditBlock.model_validate({"one_run": AUDIT["one_run"]})
    assert "steps" not in audit(run_dir, asked).document
    lines = folder.observed.read_text().splitlines(keepends=True)
    folder.observed.write_text("".join(line for line in lines if '"step": 3,' not in line))
    document = audit(run_dir, asked).document
    assert document["steps"] == {"all": 10, "seen": 9}
    assert {t["verdict"] for t in document["one_run"] if t["kind"] == "gradient"} == {"inconclusive"}
    assert any(t["ceiling"] > t["claimed"] for t in document["one_run"] if t["kind"] == "gradient")
    folder.observed.unlink()
    assert audit(run_dir, asked).document["steps"]["seen"] == 0
    folder.observed.write_text('{"step": 0, "seen": [0.5]}\n')
    with pytest.raises(MachineError, match="is damaged") as caught:
        audit(run_dir, asked)
    assert "0.5" not in str(caught.value)


@pytest.mark.parametrize("gone", ["base", "adapter"])
def test_models_that_are_gone_are_named(new_run: Callable[..., Path], base: Path, tmp_path: Path, gone: str) -> None:
    """Caches are emptied long before somebody audits again. Break: no look at the two places."""
    own = shutil.copytree(base, tmp_path / "own")
    run_dir = planted_run(new_run, of=own, audit=AUDIT, model={"base": str(own)})
    write_claim(run_dir)
    if gone == "base":
        Folder(run_dir).adapter.mkdir()
        shutil.rmtree(own)
    with pytest.raises(MachineError, match="any more") as caught:
        audit(run_dir, block())
    assert str(own if gone == "base" else run_dir) in str(caught.value)


def test_texts_longer_than_the_model_reads_are_refused(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """In a line, before any attack. Break: `check_texts` left out of `audit`."""
    run_dir = trained_run(new_run, workers)
    with pytest.raises(
        ArgumentError, match=r"audit.reconstruction.tokens: 500, but the model's context has \d+ tokens"
    ):
        audit(run_dir, block(reconstruction={"tokens": 500}))
    assert not (run_dir / "audit.json").exists()


def test_without_its_private_folder_a_run_can_not_be_audited(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="can't be audited"):
        audit(tmp_path, block())


def test_a_claim_above_every_ceiling_is_inconclusive(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """Never "passed". Break: `consistent` whatever could have been found."""
    run_dir = trained_run(new_run, workers)
    write_claim(run_dir, epsilon=50.0, groups=[{"name": "free", "epsilon": 50.0}, {"name": "paid", "epsilon": 50.0}])
    assert (
        audit(run_dir, AuditBlock.model_validate({"one_run": AUDIT["one_run"]})).document["verdict"] == "inconclusive"
    )


def test_the_claim_without_one_is_infinite(tmp_path: Path) -> None:
    (tmp_path / "privacy.json").write_text(
        '{"epsilon": null, "delta": null, "groups": [{"name": "a", "epsilon": null}]}'
    )
    assert Claim.of(tmp_path).at("a") == float("inf")
    stated = {"epsilon": 8.0, "delta": 1e-5, "groups": [{"name": "a", "epsilon": 2.0}], "any_group": True}
    (tmp_path / "privacy.json").write_text(json.dumps(stated))
    assert Claim.of(tmp_path).at("a") == 8.0  # what any user may claim, where groups are learnt


@pytest.mark.parametrize(("groups", "alone"), [(1, 0), (2, 2), (100, 100), (300, 100)])
def test_of_many_groups_the_strictest_are_asked_about_alone(groups: int, alone: int) -> None:
    """So no audit has more tests than a leaderboard reads. Broken by asking about all of them, or the first ones."""
    claim = Claim(8.0, DELTA, {f"g{i}": 1 + (7 * i) % groups / 100 for i in range(groups)})
    made = tuple(GroupMechanism(f"g{i}", 10.0, 0.5, 1.0, 1, 1) for i in range(groups))
    mechanism = Mechanism(steps=1, noise_std=1.0, groups=made, relation="zero_out")
    found = flow._asked_alone(mechanism, claim)
    assert len(found) == alone
    assert found == sorted(found)
    left = set(range(groups)) - set(found)
    assert not left or not found or max(claim.at(f"g{i}") for i in found) <= min(claim.at(f"g{i}") for i in left)
    scores_of_kinds = 3 + 1
    assert scores_of_kinds * (1 + flow.MOST_ALONE) <= MOST_TESTS


def test_the_mechanism_of_these_tests_claims_about_one() -> None:
    assert max(claimed(make_mechanism(**LEVERS))) == pytest.approx(1.0, abs=0.3)
