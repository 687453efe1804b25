"""Trainings whose mechanism is broken on purpose, as workers run them: what an audit has to find."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from harness.training import loop, updating
from harness.training.gradients import UnitGradients
from harness.training.job import Failure

_noisy_mean = updating.noisy_mean


def _a_tenth_of_the_noise(total: Any, trainables: Any, mechanism: Any, *rest: Any) -> Any:
    quiet = dataclasses.replace(mechanism, noise_std=mechanism.noise_std / 10)
    return _noisy_mean(total, trainables, quiet, *rest)


def _the_same_noise_at_every_step(total: Any, trainables: Any, mechanism: Any, step: int, *rest: Any) -> Any:
    return _noisy_mean(total, trainables, mechanism, 0, *rest)


def _a_second_pass(total: Any, trainables: Any, mechanism: Any, step: int, *rest: Any) -> Any:
    """The cohort's sum once more, without noise: as if the data were gone through again."""
    again = total / mechanism.denominator(step)
    return _noisy_mean(total, trainables, mechanism, step, *rest) if step % 2 else again


def _no_clip(
    self: UnitGradients, units: torch.Tensor, clip_norms: torch.Tensor, where: slice = slice(None)
) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(units, dim=1, dtype=torch.float64)
    self.total[where] += units.sum(dim=0)
    return norms


@contextmanager
def _broken(what: str) -> Iterator[None]:
    means = {
        "a tenth of the noise": _a_tenth_of_the_noise,
        "the same noise at every step": _the_same_noise_at_every_step,
        "a second pass without noise": _a_second_pass,
    }
    if what in means:
        with mock.patch.object(updating, "noisy_mean", means[what]):
            yield
    elif what == "no clip":
        with mock.patch.object(UnitGradients, "add", _no_clip):
            yield
    else:
        assert what == "nothing"
        yield


def trained(run_dir: Path, what: str) -> str | None:
    """Trains a run with this broken; returns the failure's message, if there is one."""
    with _broken(what):
        loop.train(run_dir)
    failure = Failure.load(run_dir)
    return None if failure is None else failure.message
