"""The one object: its event, its denominators and its digest say exactly what is executed."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event

from harness.privacy.mechanism import AdaptiveClip, Charge, GroupMechanism, Mechanism, Stretch

ROOT = Path(__file__).resolve().parents[2]
LIGHT = GroupMechanism("light", 600.0, 0.02, 0.6, 10, 2)
HEAVY = GroupMechanism("heavy", 400.5, 0.05, 0.25, 4, 3)
MECHANISM = Mechanism(10, 0.9, (LIGHT, HEAVY), "add_or_remove")


@pytest.mark.parametrize("steps", [1, 2, 7, 12, 29, 30])
def test_a_group_takes_part_in_the_public_set_of_steps(steps):
    """The set {⌊kT/T_p⌋}. Break: ``k * t < (step + 1) * t_p`` made ``<=``, or the ceiling made a floor."""
    for taken in range(1, steps + 1):
        mechanism = Mechanism(steps, 1.0, (dataclasses.replace(LIGHT, steps=taken),), "add_or_remove")
        found = [step for step in range(steps) if mechanism.takes_part(0, step)]
        assert found == sorted({k * steps // taken for k in range(taken)})
        assert len(found) == taken


def test_the_event_holds_the_rate_the_multiplier_and_the_steps_of_its_group():
    """Break: the event of every group made from the first group, or its count from the run's steps."""
    for i, g in enumerate(MECHANISM.groups):
        event = MECHANISM.event(i)
        assert isinstance(event, dp_event.SelfComposedDpEvent)
        assert event.count == g.steps
        assert isinstance(event.event, dp_event.PoissonSampledDpEvent)
        assert event.event.sampling_probability == g.sampling_rate
        assert event.event.event.noise_multiplier == pytest.approx(0.9 / g.clip_norm, rel=2e-12)
        assert MECHANISM.noise_multiplier(i) == 0.9 / g.clip_norm


def test_the_event_of_the_first_steps_counts_the_steps_that_the_group_took_part_in():
    """Break: ``count = min(steps, g.steps)``, which counts steps in which the group sat out."""
    took_part = [0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4]  # in the steps 0, 2, 5, 7
    for steps, count in enumerate(took_part):
        event = MECHANISM.event(1, steps)
        assert event == dp_event.NoOpDpEvent() if count == 0 else event.count == count
    assert MECHANISM.event(1, 99) == MECHANISM.event(1)
    assert [MECHANISM.event(0, steps).count for steps in range(1, 11)] == list(range(1, 11))


def test_without_noise_the_event_promises_nothing():
    """Break: ``without_privacy`` keeps the noise's multiplier, or the event ignores a std of 0."""
    bare = MECHANISM.without_privacy()
    assert not bare.private
    assert MECHANISM.private
    for i, g in enumerate(bare.groups):
        assert isinstance(bare.event(i), dp_event.NonPrivateDpEvent)
        assert (bare.noise_std, g.clip_norm) == (0.0, math.inf)
        assert dataclasses.replace(g, clip_norm=MECHANISM.groups[i].clip_norm) == MECHANISM.groups[i]
    assert [bare.denominator(t) for t in range(10)] == [MECHANISM.denominator(t) for t in range(10)]


def test_denominators_are_constants_of_the_groups_that_take_part():
    """Break: groups that sit out counted too."""
    always = Mechanism(10, 0.9, (LIGHT, dataclasses.replace(HEAVY, steps=10)), "add_or_remove")
    assert {always.denominator(t) for t in range(10)} == {600.0 * 0.02 + 400.5 * 0.05}
    for t in range(10):
        expected = 600.0 * 0.02 + (400.5 * 0.05 if t in {0, 2, 5, 7} else 0)
        assert MECHANISM.denominator(t) == pytest.approx(expected, rel=1e-15)


CHANGED: dict[str, Any] = {
    "canaries": 3,
    "steps": 11,
    "noise_std": math.nextafter(0.9, 1),
    "groups": (HEAVY, LIGHT),
    "relation": "zero_out",
    "sampling_unit": "example",
    "schedule": (Stretch(4), Stretch(6, noise=math.nextafter(1, 2))),
    "adaptive": AdaptiveClip(0.5, 0.2, 3.0),
    "charges": (Charge("population", 20.0),),
    "choice": (Charge("examples per user", 20.0),),
    "choice_delta": 1e-7,
    "holdout": Charge("evaluation", 5.0, 4),
    "name": "lightest",
    "users": 601.0,
    "sampling_rate": math.nextafter(0.02, 1),
    "clip_norm": math.inf,
    "examples_per_user": 1,
}


def changed(thing: Any, field: str, value: Any) -> Any:
    """A copy with another value, also one that the constructor would refuse."""
    copy = dataclasses.replace(thing)
    object.__setattr__(copy, field, value)
    return copy


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Mechanism)])
def test_the_digest_changes_with_every_field(field):
    """Break: any field popped from `to_dict`'s document before it is hashed."""
    assert changed(MECHANISM, field, CHANGED[field]).digest != MECHANISM.digest


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(GroupMechanism)])
@pytest.mark.parametrize("place", [0, 1])
def test_the_digest_changes_with_every_field_of_every_group(field, place):
    """Break: only the first group hashed, or any field of a group left out."""
    groups = list(MECHANISM.groups)
    groups[place] = changed(groups[place], field, CHANGED[field] if field != "steps" else 9)
    assert changed(MECHANISM, "groups", tuple(groups)).digest != MECHANISM.digest


def test_the_digest_is_the_same_in_another_process():
    """Break: ``hash()`` in place of SHA-256."""
    code = (
        "import json, sys; from harness.privacy.mechanism import Mechanism;"
        "print(Mechanism.from_dict(json.loads(sys.argv[1])).digest)"
    )
    command = [sys.executable, "-c", code, json.dumps(MECHANISM.to_dict())]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert there.stdout.strip() == MECHANISM.digest
    assert len(MECHANISM.digest) == 64


@pytest.mark.parametrize("mechanism", [MECHANISM, MECHANISM.without_privacy()])
def test_a_mechanism_survives_json(mechanism):
    """An infinite clip norm included. Break: `from_dict` leaves None as the clip norm."""
    text = json.dumps(mechanism.to_dict(), allow_nan=False)
    again = Mechanism.from_dict(json.loads(text))
    assert again == mechanism
    assert again.digest == mechanism.digest
    assert isinstance(again.groups, tuple)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
        ({"noise_std": math.nan}, "noise_std=nan"),
        ({"noise_std": math.inf}, "noise_std=inf"),
        ({"groups": ()}, "at least one group"),
        ({"groups": (LIGHT, LIGHT)}, "same name"),
        ({"steps": 9}, "exceeds the run's 9"),
        ({"groups": (dataclasses.replace(LIGHT, clip_norm=math.inf),)}, "protects nobody"),
    ],
)
def test_a_mechanism_that_means_nothing_is_refused(change, message):
    """Break: any one check taken out."""
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MECHANISM, **change)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling_rate", 0.0),
        ("sampling_rate", 1.0001),
        ("sampling_rate", math.nan),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("users", 0.0),
        ("users", math.inf),
        ("users", math.nan),
        ("steps", 0),
        ("examples_per_user", 0),
    ],
)
def test_a_group_that_means_nothing_is_refused(field, value):
    """Break: any one check taken out."""
    with pytest.raises(ValueError, match=rf"group light: .*{field}"):
        dataclasses.replace(LIGHT, **{field: value})


def test_nothing_of_it_can_be_changed():
    """Break: ``frozen=True`` taken out of either class."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        MECHANISM.noise_std = 0.1
    with pytest.raises(dataclasses.FrozenInstanceError):
        MECHANISM.groups[0].clip_norm = 9.0
