"""Noisy losses of private hold-out users: bounded, with the accounted noise, and never more often than accounted."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.store import Corpus
from harness.errors import BudgetError
from harness.privacy.mechanism import Charge
from harness.privacy.randomness import Randomness
from harness.training.checkpoints import load_newest
from harness.training.inputs import Inputs
from harness.training.job import Failure, Folder, Job
from harness.training.private_evaluation import PrivateEvaluation, bounded_sums
from tests.tiny import GROUPS, KEY, copy_run, made_posts, make_mechanism
from tests.training import checks
from tests.training.test_evaluation import direct

USERS = (9.0, 5.0)
"""Public numbers of hold-out users, on purpose not those of the data."""
Z = 2.0


def evaluation(*, users: tuple[float, ...] = USERS, count: int = 10**9, series: str = "private") -> PrivateEvaluation:
    return PrivateEvaluation(Charge("evaluation", Z, count), GROUPS, users, Randomness(KEY), series)


def nobody() -> Any:
    return np.empty(0)


def mechanism_with(count: int, *, z: float = Z, steps: int = 3) -> Any:
    return make_mechanism(steps=steps, noise_std=0.5, holdout=Charge("evaluation", z, count))


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Folder(run_dir).metrics.read_text().splitlines()]


# --- what is hidden -----------------------------------------------------------------------------------------

LOSSES = st.one_of(st.floats(-5, 50), st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    losses=st.lists(LOSSES, min_size=1, max_size=9), changed=LOSSES, bound=st.sampled_from([1.0, 4.0]), data=st.data()
)
def test_one_user_moves_one_coordinate_by_at_most_b(losses: Any, changed: float, bound: float, data: Any) -> None:
    """Left out, or with their group -1: by at most b in l2 norm; with any other loss, from one end of the interval to
    the other. Red when losses are not clipped, or when what is not finite is passed on.
    """
    groups = data.draw(st.lists(st.integers(-1, 1), min_size=len(losses), max_size=len(losses)))
    user = data.draw(st.integers(0, len(losses) - 1))
    center = np.array([3.0, 4.5])
    whole = bounded_sums(np.array(losses), groups, center, bound)
    without = bounded_sums(np.delete(losses, user), groups[:user] + groups[user + 1 :], center, bound)
    assert np.isfinite(whole).all()
    assert np.linalg.norm(whole - without) <= bound * (1 + 1e-12)
    assert np.count_nonzero(np.abs(whole - without) > 1e-9) <= (groups[user] >= 0)
    other = bounded_sums(np.array([*losses[:user], changed, *losses[user + 1 :]]), groups, center, bound)
    assert np.linalg.norm(other - without) <= bound * (1 + 1e-12)


def test_what_is_not_finite_counts_as_b() -> None:
    """Red when it counts as nothing: whether a user's loss is finite would show."""
    losses = np.array([math.nan, math.inf, 2.0, 9.0, 2.5])
    assert bounded_sums(losses, [0, 0, 0, 1, 1], np.array([3.0, 3.0]), 1.0).tolist() == [1.0, 1.0 - 0.5]


@pytest.mark.parametrize("budget", [1, 100_000])
def test_any_text_of_a_user_moves_the_hidden_sums_by_at_most_b(
    new_run: Callable[..., Path], workers: Callable[[int], Any], budget: int
) -> None:
    """In the model: one hold-out user writes nothing (b), or something else (from one end to the other: 2b).

    Red when a loss is not clipped.
    """
    options: dict[str, Any] = {
        "mechanism": mechanism_with(4),
        "holdout_users": USERS,
        "compute": {"microbatch_tokens": budget},
    }
    before = new_run(**options)
    corpus = Corpus.load(Job.load(before).corpus)
    held = int(corpus.holdout_by_order(100)[0])
    name, group = corpus.user_id(held), GROUPS.index(str(corpus.attributes(held)["plan"]))
    after = [new_run(posts=[p for p in made_posts() if p["user"] != name], **options)]
    for text in ("~" * 400, "e e e", "tide lamp"):
        posts = [{**p, "text": text if p["user"] == name else p["text"]} for p in made_posts()]
        after.append(new_run(posts=posts, **options))
    for center, bound in ((4.0, 1.0), (6.0, 4.0)):
        (found,) = workers(1)(checks.sums_of_hold_out_users, [before, *after], center, bound)
        moved = [np.array(sums) - np.array(found[0]) for sums in found[1:]]
        assert max(abs(float(m[group])) for m in moved) > 1e-3
        for i, m in enumerate(moved):
            # Padding differs, so others' losses are equal to rounding; replacing is leaving and joining: twice b.
            assert abs(float(m[1 - group])) < 1e-4
            assert abs(float(m[group])) <= (2 if i else 1) * bound + 1e-4


def test_all_private_hold_out_users_take_part(new_run: Callable[..., Path]) -> None:
    """Who is among the first few would depend on who else is there. Red when evaluation.users cuts them."""
    run_dir = new_run(mechanism=mechanism_with(4), holdout_users=USERS, evaluation={"users": 1})
    job = Job.load(run_dir)
    inputs = Inputs.load(job, Folder(run_dir))
    corpus = Corpus.load(job.corpus)
    held = [u for u in range(corpus.n_users) if corpus.holdout[u] and corpus.n_examples[u]]
    assert sorted(inputs.holdout.examples) == sorted(corpus.examples_of(u)[0] for u in held)
    assert len(held) > 5


# --- the noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "bound"), [(True, 4.0), (False, 1.0)])
def test_the_noise_is_that_of_the_charge(first: bool, bound: float) -> None:
    """z·b on every group's sum, over 3,000 steps under a fixed key; with a random one the standard deviations (±6 %,
    4.6 standard errors) would fail in 4e-6 of all cases each, Kolmogorov–Smirnov's tests in 1e-4 each, the correlation
    between groups (5 standard errors) in 6e-7. Red when b is left out, when one draw serves all groups, or when the sum
    is divided by the number of users that there are.
    """
    from scipy import stats

    earlier = [] if first else [{"eval/loss": 2.0, "eval/loss/free": 3.0, "eval/loss/paid": 1.0}]
    center = np.array([4.0, 4.0] if first else [3.0, 1.0])
    found = np.array(
        [
            [r["eval/loss/free"], r["eval/loss/paid"]]
            for step in range(3000)
            for r in [evaluation().release(earlier, step, [], nobody)]
        ]
    )
    drawn = (found - center) * np.array(USERS) / (Z * bound)
    for g in range(2):
        assert drawn[:, g].std() == pytest.approx(1, rel=0.06)
        assert stats.kstest(drawn[:, g], "norm").pvalue > 1e-4
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / math.sqrt(3000)


def test_the_noise_has_its_own_address() -> None:
    """Red when it is drawn from the gradient's or the bits', or without the series or the step."""
    one = evaluation().release([], 3, [], nobody)
    assert one == evaluation().release([], 3, [], nobody)
    draws = [(one["eval/loss/free"] - 4.0) * 9.0 / (4.0 * Z), (one["eval/loss/paid"] - 4.0) * 5.0 / (4.0 * Z)]
    assert draws == pytest.approx(Randomness(KEY).normals("evaluation", 3, "private", 0, 2).tolist())
    assert evaluation().release([], 4, [], nobody) != one
    assert evaluation(series="other").release([], 3, [], nobody) != one


def test_a_loss_is_followed_from_one_evaluation_to_the_next() -> None:
    """As written down, with a noise of the key; overall by the public numbers. Red when every evaluation starts at 4,
    when b stays 4, or when the overall loss is weighted by the users that there are.
    """
    losses, groups = np.array([3.0, 2.0, 9.0, 2.2]), [0, 0, 1, -1]
    found = [evaluation().release([], 0, groups, lambda: losses)]
    found.append(evaluation().release([{"step": 0, **found[0]}, {"step": 1}], 2, groups, lambda: losses))
    m = np.array([4.0, 4.0])
    for k, step in enumerate((0, 2)):
        b = (4.0, 1.0)[k]
        sums = np.array([np.clip(np.array([3.0, 2.0]) - m[0], -b, b).sum(), np.clip(9.0 - m[1], -b, b)])
        m = m + (sums + Z * b * Randomness(KEY).normals("evaluation", step, "private", 0, 2)) / np.array(USERS)
        assert [found[k]["eval/loss/free"], found[k]["eval/loss/paid"]] == pytest.approx(m.tolist())
        assert found[k]["eval/loss"] == pytest.approx((9 * m[0] + 5 * m[1]) / 14)
        assert set(found[k]) == {"eval/loss", "eval/loss/free", "eval/loss/paid"}


def test_a_group_without_hold_out_users_has_no_answer() -> None:
    """Its public number is 0. Red when it is divided by, or when such a user is counted after all."""
    found = evaluation(users=(9.0, 0.0)).release([], 0, [1, 1], lambda: np.array([5.0, 6.0]))
    assert set(found) == {"eval/loss", "eval/loss/free"}
    assert found["eval/loss"] == found["eval/loss/free"]
    assert evaluation(users=(0.0, 0.0)).release([], 0, [], nobody) == {}
    with pytest.raises(ValueError, match="each group needs the public number of its private hold-out users"):
        evaluation(users=(1.0,))


# --- how often ----------------------------------------------------------------------------------------------


def test_one_evaluation_too_many_is_refused_before_anybody_is_looked_at() -> None:
    """Red when the count is compared after the losses were computed, or is one too large."""
    earlier: list[dict[str, Any]] = []
    for step in range(3):
        earlier.append({"step": step, **evaluation(count=3).release(earlier, step, [], nobody)})

    def looks() -> Any:
        raise AssertionError("somebody was looked at")

    with pytest.raises(BudgetError, match="were evaluated 3 times, and no more is accounted"):
        evaluation(count=3).release(earlier, 3, [], looks)


def test_a_run_with_too_many_evaluations_releases_what_is_accounted_and_no_more(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """Three are accounted, four would be made; trying again changes nothing. Red when the row is released first."""
    run_dir = new_run(mechanism=mechanism_with(3), holdout_users=USERS, compute={"deepspeed": {"stage": 1}})
    for _ in range(2):
        (message,) = set(workers(2)(checks.train, run_dir))
        assert Failure.load(run_dir) == Failure(message, exit_code=3)
        assert "no more is accounted" in message
        assert [row["step"] for row in rows(run_dir)] == [0, 1, 2]
        Folder(run_dir).failure.unlink()


# --- in a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("world", "stage"), [(1, 0), (2, 3)])
def test_a_run_releases_noisy_losses_alone(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """With next to no noise they are means of users' losses; neither tokens nor exact numbers are released, and the
    ordinary series does not evaluate.

    Red when that series, whose own mechanism has no charge, takes them for public, or when a user's loss is the sum
    over their tokens.
    """
    run_dir = new_run(
        mechanism=mechanism_with(4, z=1e-9),
        holdout_users=(7.0, 3.0),
        evaluation={"ordinary": True},
        compute={"deepspeed": {"stage": stage}},
    )
    assert workers(world)(checks.train, run_dir) == [None] * world
    found = rows(run_dir)
    private, ordinary = ([r for r in found if r["series"] == series] for series in ("private", "ordinary"))
    names = {"series", "step", "epsilon", "eval/loss", *(f"eval/loss/{g}" for g in GROUPS)}
    assert [set(row) for row in private] == [names] * 4
    assert [set(row) for row in ordinary] == [{"series", "step", "epsilon"}] * 3
    job = Job.load(run_dir)
    inputs = Inputs.load(job, Folder(run_dir))
    expected = [0.0, 0.0]
    for example, group in zip(inputs.holdout.examples, inputs.holdout.groups, strict=True):
        alone = dataclasses.replace(inputs.holdout, examples=(example,), groups=(group,))
        expected[group] += min(4.0, max(-4.0, loss_of(run_dir, alone) - 4.0))
    for g, name in enumerate(GROUPS):
        assert private[0][f"eval/loss/{name}"] == pytest.approx(4.0 + expected[g] / (7.0, 3.0)[g], rel=1e-5)


def loss_of(run_dir: Path, holdout: Any) -> float:
    """One user's loss under the initial model, by itself in float64."""
    from unittest import mock

    from harness.training.inputs import Inputs as Loaded

    inputs = Loaded.load(Job.load(run_dir), Folder(run_dir))
    with mock.patch.object(Loaded, "load", return_value=dataclasses.replace(inputs, holdout=holdout)):
        return direct(run_dir)["eval/loss"]


@pytest.mark.parametrize(("world", "stage", "how"), [(1, 0, "crash"), (2, 2, "stop")])
def test_an_interrupted_run_releases_the_same_values(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int, how: str
) -> None:
    """Bit for bit, and each once. Red when a resumed run forgets the rows of its checkpoint."""
    options: dict[str, Any] = {
        "mechanism": mechanism_with(4, steps=5),
        "holdout_users": USERS,
        "train": {"checkpoint_every": 2},
        "compute": {"deepspeed": {"stage": stage}},
    }
    whole, run_dir = new_run(**options), new_run(**options)
    workers(world)(checks.train, whole)
    if how == "crash":
        assert workers(world)(checks.crashed_in_step, run_dir, 3) == [True] * world
    else:
        workers(world)(checks.stopped_after_release_of, run_dir, 2)
    assert [row["step"] for row in rows(run_dir)] == [0, 2]
    assert workers(world)(checks.train, run_dir) == [None] * world
    assert [row["step"] for row in rows(whole)] == [0, 2, 4, 5]
    assert Folder(run_dir).metrics.read_bytes() == Folder(whole).metrics.read_bytes()
    one, other = (load_newest(Folder(r).checkpoints("private")) for r in (run_dir, whole))
    assert one is not None
    assert other is not None
    assert one.rows == other.rows


def test_the_noise_of_a_run_is_drawn_once_per_evaluation(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """As many noisy vectors as are accounted, at b = 4 once and b = 1 then. Red when each rank or group draws one."""
    run_dir = new_run(mechanism=mechanism_with(4), holdout_users=USERS, compute={"deepspeed": {"stage": 0}})
    first, second = workers(2)(checks.noisy_sums, run_dir)
    assert first == second
    made = [(step, name, std) for purpose, step, name, std in first if purpose == "evaluation"]
    assert made == [(0, "private", 8.0), (1, "private", 2.0), (2, "private", 2.0), (3, "private", 2.0)]


def test_noise_is_released_even_if_nobody_is_held_out(
    new_run: Callable[..., Path], workers: Callable[[int], Any]
) -> None:
    """The public number says that there should be some. Red when an empty hold-out set skips the release: it would say
    that nobody is there.
    """
    run_dir = new_run(mechanism=mechanism_with(4), holdout_users=USERS, data={"holdout": {"users": 0.0}})
    assert workers(1)(checks.train, run_dir) == [None]
    normals = Randomness(KEY).normals("evaluation", 0, "private", 0, 2)
    assert rows(run_dir)[0]["eval/loss/free"] == pytest.approx(4.0 + Z * 4.0 * normals[0] / 9.0)


def test_private_hold_out_users_without_a_charge_are_not_evaluated(
    new_run: Callable[..., Path], workers: Callable[[int], Any], tmp_path: Path
) -> None:
    """Nothing is accounted, so nothing is released. Red when the charge alone decides who is public."""
    run_dir = new_run(mechanism=make_mechanism(noise_std=0.5))
    spec = Job.load(run_dir).spec
    held = spec.data.holdout.model_copy(update={"visibility": "private"})
    secret = spec.model_copy(update={"data": spec.data.model_copy(update={"holdout": held})})
    assert workers(1)(checks.losses_with, run_dir, spec=secret) == [{}]
    (public,) = workers(1)(checks.losses_with, copy_run(run_dir, tmp_path / "public"))
    assert "eval/tokens" in public
