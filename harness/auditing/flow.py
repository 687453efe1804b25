"""A finished run → what attacks measure of it: ``audit.json``, and what is private of it in the private folder.

Canaries and planted secrets are nobody's, and what is found of them is released. Statistics of real users are released
only where their data are public; else they lie in the private folder alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.auditing import one_run
from harness.auditing.losses import budget_of, example_losses
from harness.auditing.pair import Pair
from harness.auditing.scores import observed_sigma, spread_scores, step_scores
from harness.data.canaries import Canary, load
from harness.errors import ArgumentError, MachineError
from harness.files import as_json, write_private, write_released
from harness.planning.attackable import check_texts
from harness.planning.shapes import read_shape
from harness.privacy.mechanism import Mechanism, binomial
from harness.spec.audit_block import AuditBlock
from harness.training.job import Folder, Job
from harness.training.model import Base
from harness.training.planting import observed

AUDIT = "audit.json"
VERSION = 1
MOST_ALONE = 100
"""Groups that are asked about by themselves; a leaderboard reads up to 1,000 tests, and each group has four."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class Claim:
    """What a run's guarantee says. Public.

    Attributes:
        epsilon: Of any user; None: nothing is claimed.
        delta: δ.
        groups: ε of each group by name, where it is claimed.
    """

    epsilon: float | None
    delta: float | None
    groups: Mapping[str, float | None]

    @classmethod
    def of(cls, run_dir: Path) -> Claim:
        """As `privacy.json` has it."""
        path = run_dir / "privacy.json"
        try:
            stated = json.loads(path.read_text())
            groups = {group["name"]: group["epsilon"] for group in stated["groups"]}
            if stated.get("any_group"):
                groups = dict.fromkeys(groups, stated["epsilon"])
            return cls(stated["epsilon"], stated["delta"], groups)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MachineError(f"{path} is damaged ({type(error).__name__})") from None

    def at(self, group: str | None) -> float:
        """ε of a group's users, or of any user; infinity where nothing is claimed."""
        value = self.epsilon if group is None else self.groups.get(group, self.epsilon)
        return math.inf if value is None else value


@dataclass(frozen=True)
class Audited:
    """What came of an audit.

    Attributes:
        document: `audit.json`.
        violated: What was measured above the claim, in words; None: nothing.
    """

    document: Mapping[str, Any]
    violated: str | None


def audit(run_dir: Path, block: AuditBlock, note: Note = lambda text: None) -> Audited:
    """Runs every attack of a block on a trained run, and writes what may be shown into its folder.

    Args:
        run_dir: A run whose training is over, with its private folder.
        block: What to run; of canaries and secrets, the block that the run was trained with.
        note: Is told which attack comes next.

    Raises:
        ArgumentError: The private folder does not hold what the attacks need.
        MachineError: The base model or the trained one is no longer where the run had it, or something is damaged.
    """
    folder = Folder(run_dir)
    if not (folder.private / "job.json").exists() or (block.plants and not folder.canaries.exists()):
        raise ArgumentError(f"{run_dir} can't be audited: its private folder is not here, or holds no canaries")
    job, claim = Job.load(run_dir), Claim.of(run_dir)
    trained = folder.trained(job.spec.model.adapter.type)
    for what, place in (("the files of its base model", job.base / "config.json"), ("its trained weights", trained)):
        if not place.exists():
            raise MachineError(f"{run_dir} can't be audited: {what} are not in {place} any more")
    shape = read_shape(job.base)
    check_texts(block, None if shape is None else shape.context)
    drawn = load(folder.canaries) if block.plants else ()
    pair = Pair(run_dir, Base(job.base, "where the run had it"), job.spec.model, job.device)
    delta = claim.delta or 0.0
    document: dict[str, Any] = {
        "version": VERSION,
        "claimed": {"epsilon": claim.epsilon, "delta": claim.delta, "groups": dict(claim.groups)},
        "confidence": block.confidence,
        "planted": _planted_in_numbers(drawn, job.mechanism),
    }
    violated = None
    if block.one_run is not None:
        note("audit: guessing which canaries were in the training")
        noted = _noted(job, folder)
        found = _questions(job, block, claim, noted, drawn, pair)
        tests = one_run.run_tests(found, delta, block.confidence)
        weak = _seen_in_part(job, noted)
        document["one_run"] = [_told(test, claim, weak) for test in tests]
        if "gradient" in weak:
            document["steps"] = {"all": job.mechanism.steps, "seen": len(noted)}
        document["verdict"] = _verdict(tests, claim, weak)
        violated = _violation(tests, claim)
    from harness.auditing import attacks

    parts = attacks.run(job, block, folder, drawn, pair, note)
    if job.spec.data.visibility != "public" and "user_inference" in parts:
        private = {"user_inference": parts["user_inference"]}
        write_private(folder.private / AUDIT, as_json(private).encode())
        parts["user_inference"] = {"private": True}
    document |= parts
    write_released(run_dir / AUDIT, as_json(document))
    return Audited(document, violated)


def _planted_in_numbers(drawn: tuple[Canary, ...], mechanism: Mechanism) -> list[dict[str, Any]]:
    """How many of each kind and group were planted; not how many of them are in."""
    counts: dict[tuple[str, int], int] = {}
    for canary in drawn:
        counts[canary.kind, canary.group] = counts.get((canary.kind, canary.group), 0) + 1
    names = [group.name for group in mechanism.groups]
    return [{"kind": kind, "group": names[group], "count": n} for (kind, group), n in counts.items()]


# --- the one-run audit --------------------------------------------------------------------------------------


def _noted(job: Job, folder: Folder) -> dict[int, NDArray[np.float64]]:
    """What each step showed of the gradient canaries.

    Raises:
        MachineError: It is of other canaries.
    """
    if "gradient" not in job.spec.canary_kinds:
        return {}
    canaries = sum(canary.kind == "gradient" for canary in load(folder.canaries))
    found = {step: seen for step, seen in observed(folder).items() if 0 <= step < job.mechanism.steps}
    if any(seen.shape != (canaries,) for seen in found.values()):
        raise MachineError(f"what steps showed of a run's canaries in {folder.observed} is damaged")
    return found


def _seen_in_part(job: Job, noted: Mapping[int, object]) -> frozenset[str]:
    """Kinds of canaries of which something was not noted (a full disk): that nothing is found of them says nothing."""
    lost = "gradient" in job.spec.canary_kinds and len(noted) < job.mechanism.steps
    return frozenset({"gradient"}) if lost else frozenset()


def _questions(
    job: Job,
    block: AuditBlock,
    claim: Claim,
    noted: Mapping[int, NDArray[np.float64]],
    drawn: tuple[Canary, ...],
    pair: Pair,
) -> list[one_run.Question]:
    """All that is asked: of each kind and score, over all groups and within those that are `_asked_alone`.

    A group with too few canaries for a guess on each side is not: nothing could be found in it.
    """
    assert block.one_run is not None
    alone = _asked_alone(job.mechanism, claim)
    found: list[one_run.Question] = []
    for kind in job.spec.canary_kinds:
        own = [canary for canary in drawn if canary.kind == kind]
        scores = _gradient_scores(job.mechanism, own, noted) if kind == "gradient" else _text_scores(own, pair)
        included = np.array([canary.included for canary in own], dtype=np.bool_)
        groups = np.array([canary.group for canary in own])
        for name, values in scores.items():
            found.append(one_run.Question(kind, name, None, values, included, block.one_run.guesses))
            for g in alone:
                inside = groups == g
                if one_run.usable_guesses(None, int(inside.sum())):
                    group = job.mechanism.groups[g].name
                    found.append(one_run.Question(kind, name, group, values[inside], included[inside]))
    return found


def _asked_alone(mechanism: Mechanism, claim: Claim) -> list[int]:
    """The groups that are asked about by themselves: where there are several, the `MOST_ALONE` strictest of them.

    Every test takes confidence from all others. Which groups these are follows from the claim, before anything is
    scored.
    """
    if len(mechanism.groups) == 1:
        return []
    strictest = sorted(range(len(mechanism.groups)), key=lambda g: claim.at(mechanism.groups[g].name))
    return sorted(strictest[:MOST_ALONE])


def _gradient_scores(
    mechanism: Mechanism, own: list[Canary], noted: Mapping[int, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """What all releases together say of each gradient canary, in three ways."""
    steps = sorted(noted)
    seen = np.array([noted[step] for step in steps], dtype=np.float64).reshape(len(steps), len(own))
    groups = np.array([canary.group for canary in own])
    sigma = np.full(seen.shape, np.nan)
    for row, step in enumerate(steps):
        # s_t / C_{p,t}: an adaptive clip's factor is the same in both.
        noise, clip_norms = mechanism.noise_std_at(step), np.array(mechanism.clip_norms_at(step))
        takes_part = np.array([mechanism.takes_part(g, step) for g in range(len(mechanism.groups))])
        sigma[row] = np.where(takes_part[groups], noise / clip_norms[groups], np.nan)
    chances = _chances(mechanism)
    drawn = np.array([chances[g] for g in groups])[None]
    return {
        "likelihood ratio": step_scores(seen, sigma, drawn),
        "likelihood ratio at the noise seen": step_scores(seen, observed_sigma(seen, sigma), drawn),
        "spread over steps": spread_scores(seen, sigma),
    }


def _chances(mechanism: Mechanism) -> NDArray[np.float64]:
    """Of each group, the probability of being drawn 0, 1, 2 … times in a step, shape [groups, counts]."""
    by_example = mechanism.sampling_unit == "example"
    rows = [binomial(g.examples_per_user if by_example else 1, g.sampling_rate) for g in mechanism.groups]
    width = max(map(len, rows))
    return np.array([[*row, *[0.0] * (width - len(row))] for row in rows])


def _text_scores(own: list[Canary], pair: Pair) -> dict[str, NDArray[np.float64]]:
    """How much likelier training made each canary's text."""
    rows = [canary.examples[0] for canary in own]
    tuned = example_losses(pair.tuned, rows, pair.device, budget_of(pair.device))
    with pair.base() as model:
        base = example_losses(model, rows, pair.device, budget_of(pair.device))
    return {"log ratio": base.nats - tuned.nats}


def _said(test: one_run.Test, claim: Claim, weak: frozenset[str]) -> one_run.Verdict:
    """What one test says; of canaries that were seen in part alone, never that it could have found more."""
    found = one_run.verdict([test], claim.at(test.group))
    return "inconclusive" if found == "consistent" and test.kind in weak else found


def _told(test: one_run.Test, claim: Claim, weak: frozenset[str]) -> dict[str, Any]:
    claimed = claim.at(test.group)
    return test.document() | {
        "claimed": claimed if math.isfinite(claimed) else None,
        "verdict": _said(test, claim, weak),
    }


def _verdict(tests: tuple[one_run.Test, ...], claim: Claim, weak: frozenset[str]) -> one_run.Verdict:
    """Of all tests: the worst of what they say; consistent only where one could have found more than is claimed."""
    if _violation(tests, claim) is not None:
        return "violated"
    each = {_said(test, claim, weak) for test in tests}
    return "consistent" if "consistent" in each else "inconclusive"


def _violation(tests: tuple[one_run.Test, ...], claim: Claim) -> str | None:
    for test in tests:
        if test.bound > claim.at(test.group):
            whose = "any user" if test.group is None else f'users of "{test.group}"'
            return (
                f"ε of {whose} is at least {test.bound:.4g} ({test.kind} canaries, {test.correct} of {test.guesses} "
                f"guesses right), and {claim.at(test.group):.4g} is claimed"
            )
    return None
