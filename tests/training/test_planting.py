"""Gradient canaries: clipped where everybody is, seen only in what is released, the same on any workers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data import canaries
from harness.data.canaries import Canary, Planted
from harness.data.cohorts import Unit
from harness.privacy.randomness import Randomness, load_key
from harness.spec.audit_block import AuditBlock
from harness.training.gradients import UnitGradients
from harness.training.job import Folder
from harness.training.planting import Directions, Witness, observed
from tests.tiny import KEY, made_posts, make_mechanism
from tests.training import checks

AUDIT = {"one_run": {"canaries": 60}, "extraction": {"secrets": 4, "digits": 4}}
ONLY = {"one_run": {"canaries": 60, "kinds": ["gradient"]}}


class Nothing:
    """A corpus without users."""

    n_users = 0
    example_lengths = np.zeros(0, dtype=np.int32)


def directions(count: int, size: int) -> Directions:
    made = [Canary("gradient", 0, True, ((0, 0),)) for _ in range(count)]
    return Directions(Planted.beside(Nothing(), made), size, Randomness(KEY), torch.device("cpu"))


def sink(size: int) -> UnitGradients:
    """A sum of so many coordinates, over no model."""
    found = UnitGradients((), torch.device("cpu"))
    found.size, found.total = size, torch.zeros(size)
    return found


def test_directions_have_their_clip_norm_and_are_apart():
    """Each one alone adds a vector of norm C that is seen as C along its own direction and 0 along all others.

    Trap 7. Break: the loud gradient added without `add`'s clip; signs that overlap.
    """
    found = directions(7, 1000)
    limits = torch.tensor([0.25], dtype=torch.float64)
    for number in range(7):
        total = sink(1000)
        found.add([Unit(number, 0, (number,), 1)], total, limits)
        assert float(total.total.norm()) == pytest.approx(0.25, rel=1e-6)
        np.testing.assert_allclose(found.seen(total.total), np.eye(7)[number] * 0.25, atol=1e-7)


def test_noise_is_seen_at_its_own_size():
    """Along a direction of norm one, noise of std s has std s; 2,000 directions, to 4 standard errors (1e-4)."""
    found = directions(2000, 40_000)
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(1)) * 3.0
    assert found.seen(noise).std() == pytest.approx(3.0, rel=4 / np.sqrt(4000))


def planted_run(new_run: Callable[..., Path], **options: Any) -> Path:
    """A run with canaries, ready to train."""
    audit = options.pop("audit", AUDIT)
    block = AuditBlock.model_validate(audit)
    found = canaries.places(block, audit["one_run"].get("kinds", ("gradient", "text")), 2)
    counts = Counter(place.group for place in found)
    levers = {"steps": 4, "noise_std": 0.5, **options.pop("levers", {})}
    mechanism = make_mechanism(**levers).planted([counts[0], counts[1]])
    run_dir = new_run(mechanism=mechanism, audit=audit, **options)
    drawn = canaries.draw(
        found,
        load_key(Folder(run_dir).key),
        encode=lambda text: [ord(c) % 90 for c in text],
        vocabulary=range(90),
        max_tokens=32,
        copies=[1, 1],
        extraction=block.extraction,
    )
    canaries.save(drawn, Folder(run_dir).canaries)
    return run_dir


@pytest.mark.parametrize(("world", "stage"), [(1, 2), (2, 0), (2, 3)])
def test_the_same_on_any_workers(
    new_run: Callable[..., Path], workers: Callable[[int], Any], world: int, stage: int
) -> None:
    """Weights, and what every release shows, to 1e-5. Trap 3. Break: canaries added on every rank."""
    alone, several = planted_run(new_run), planted_run(new_run, compute={"deepspeed": {"stage": stage}})
    ((_, expected),) = workers(1)(checks.trained, [alone])[0]
    for ((_, found),) in workers(world)(checks.trained, [several]):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    before, after = observed(Folder(alone)), observed(Folder(several))
    assert sorted(before) == sorted(after) == [0, 1, 2, 3]
    for step, seen in before.items():
        np.testing.assert_allclose(after[step], seen, atol=1e-4)


def test_what_is_seen_tells_who_was_drawn(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Without noise, and hardly any users: a drawn canary is seen at 1, all others near 0. Break: D_t left out."""
    levers = {"noise_std": 1e-4, "rates": (0.5, 0.5), "clip_norms": (1e-2, 1e-2), "users": (1.0, 1.0)}
    run_dir = planted_run(new_run, levers=levers, audit=ONLY, posts=made_posts(6))
    workers(1)(checks.trained, [run_dir])
    drawn = canaries.load(Folder(run_dir).canaries)
    seen = np.array([observed(Folder(run_dir))[step] for step in range(4)])
    own = [c for c in drawn if c.kind == "gradient"]
    inside = seen[:, [c.included for c in own]]
    outside = seen[:, [not c.included for c in own]]
    # Users' own gradients add about √cohort/√(coordinates) along any direction.
    assert np.abs(outside).max() < 0.5
    assert np.minimum(np.abs(inside), np.abs(inside - 1)).max() < 0.5
    assert 0.2 < (inside > 0.5).mean() < 0.8


def test_an_ordinary_run_beside_has_no_canaries(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Break: `ordinary` with the private run's members."""
    run_dir = planted_run(new_run, evaluation={"ordinary": True})
    assert workers(1)(checks.train, run_dir) == [None]
    rows = [json.loads(line) for line in (Folder(run_dir).private / "diagnostics.jsonl").read_text().splitlines()]
    sizes = {name: [row["cohort"] for row in rows if row["series"] == name] for name in ("private", "ordinary")}
    assert np.mean(sizes["ordinary"]) < np.mean(sizes["private"])
    assert sorted(observed(Folder(run_dir))) == [0, 1, 2, 3]
    assert sum(map(bool, Folder(run_dir).observed.read_text().splitlines())) == 4


def test_a_crash_repeats_what_was_seen(new_run: Callable[..., Path], workers: Callable[[int], Any]) -> None:
    """Trap 8. Break: a row that depends on anything but the release."""
    whole, broken = planted_run(new_run), planted_run(new_run)
    workers(1)(checks.trained, [whole])
    assert all(workers(1)(checks.crashed_in_step, broken, 2))
    workers(1)(checks.trained, [broken])
    before, after = observed(Folder(whole)), observed(Folder(broken))
    assert sorted(before) == sorted(after)
    assert all((before[step] == after[step]).all() for step in before)


def test_half_a_line_is_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.private.mkdir()
    folder.observed.write_text('{"step": 0, "seen": [1.0]}\n{"step": 1, "se')
    assert observed(folder) == {0: [1.0]}
    with folder.observed.open("a") as file:
        file.write('{"step": 1, "seen": [2.0]}\n{"step": 2, "seen": [3.0]}\n')
    assert observed(folder) == {0: [1.0], 2: [3.0]}


def test_half_a_line_takes_no_other_with_it(tmp_path: Path) -> None:
    """A kill within a line, right after a checkpoint: the step is repeated, and must be seen.

    Break: the first ``"\\n"`` left out.
    """
    folder, one = Folder(tmp_path), directions(1, 4)
    folder.private.mkdir()
    folder.observed.write_text('{"step": 0, "seen": [1.0]}\n{"step": 1, "se')
    made = Planted.beside(Nothing(), [Canary("gradient", 0, True, ((0, 0),))])
    witness = Witness(one, made, make_mechanism(steps=3), folder)
    for step in (1, 2):
        witness.note(torch.ones(4), step, 1.0)
    assert sorted(observed(folder)) == [0, 1, 2]
