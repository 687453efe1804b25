"""The parameters of a made population: every mistake at its place; and the spec that comes with it."""

from __future__ import annotations

from typing import Any

import pytest

from harness.planning import make_plan
from harness.spec import SpecErrors, load_spec

SOURCE = "{type: jsonl, path: posts.jsonl}"


def errors(tiny: str, write: Any, source: str) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        load_spec(write(tiny.replace(SOURCE, source)))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("users: 9}", "6:3 data.source.scenario: is missing; it must be"),
        ("scenario: chat}", "6:3 data.source.users: is missing; it must be a whole number of at least 1"),
        ("scenario: chta, users: 9}", '6:39 data.source.scenario: must be "support", "chat", "health-notes" or'),
        ("scenario: chat, users: 0}", "6:52 data.source.users: must be a whole number of at least 1"),
        (
            "scenario: chat, users: 9, sede: 1}",
            '6:55 data.source.sede: unknown parameter of synthetic; did you mean "s',
        ),
        ("scenario: chat, users: 9, seed: -1}", "6:61 data.source.seed: must be a whole number of at least 0"),
        ("scenario: chat, users: 9, records: {law: normal}}", '6:70 data.source.records.law: must be "lognormal", "zi'),
        (
            "scenario: chat, users: 9, records: {exponent: 2}}",
            "6:65 data.source.records.exponent: is no parameter of log",
        ),
        (
            "scenario: chat, users: 9, records: {law: zipf, sigma: 2}}",
            "6:76 data.source.records.sigma: is no parameter of",
        ),
        (
            "scenario: chat, users: 9, records: {mean: 2, median: 3}}",
            "6:65 data.source.records.mean: give either median",
        ),
        (
            "scenario: chat, users: 9, records: {mean: 20, max: 10}}",
            "6:65 data.source.records.mean: 20 is above records.",
        ),
        (
            "scenario: chat, users: 9, identifiers: {emial: 0.1}}",
            "6:69 data.source.identifiers.emial: unknown parameter",
        ),
        (
            "scenario: chat, users: 9, identifiers: {email: 1.5}}",
            "6:76 data.source.identifiers.email: must be a number of",
        ),
        (
            "scenario: chat, users: 9, secrets: {users: 10}}",
            "6:65 data.source.secrets.users: 10 are more than the 9 users",
        ),
        (
            "scenario: chat, users: 9, secrets: {users: 1.5}}",
            "6:72 data.source.secrets.users: must be a whole number of",
        ),
        (
            "scenario: chat, users: 9, copies: {fraction: 0.7}}",
            "6:74 data.source.copies.fraction: must be a number of at",
        ),
        ("scenario: chat, users: 1, copies: {fraction: 0.1}}", "6:64 data.source.copies.fraction: one user alone has"),
        (
            "scenario: chat, users: 2, households: {fraction: 0.1}}",
            "data.source.households.size: 3 are more than the 2",
        ),
        (
            "scenario: chat, users: 9, households: {size: 1}}",
            "6:74 data.source.households.size: must be a whole number of",
        ),
        (
            "scenario: chat, users: 9, outliers: {kinds: [odd]}}",
            '6:74 data.source.outliers.kinds.0: must be "style", "t',
        ),
        (
            "scenario: chat, users: 9, outliers: {kinds: []}}",
            "6:73 data.source.outliers.kinds: must be a list of at least",
        ),
        (
            "scenario: chat, users: 9, demographics: {user: {a: 1}}}",
            '6:70 data.source.demographics.user: the column "us',
        ),
        (
            "scenario: chat, users: 9, demographics: {plan: {a: 0}}}",
            "6:80 data.source.demographics.plan.a: must be a num",
        ),
        (
            "scenario: chat, users: 9, demographics: {plan: {}}}",
            "6:70 data.source.demographics.plan: at least one value",
        ),
    ],
)
def test_a_mistake_is_named_at_its_place(written: str, line: str, tiny: str, write: Any) -> None:
    found = errors(tiny, write, "{type: synthetic, " + written)
    assert len(found) == 1
    assert line in found[0]


def test_the_spec_that_comes_with_it_validates_and_plans() -> None:
    """Made users are counted without making a text; groups by plan, the stricter with the smaller clip norm."""
    document = make_plan("specs/synthetic-support.yaml", ["data.source.users=600"]).document()
    groups = {group["name"]: group for group in document["groups"]}
    assert list(groups) == ["free", "team", "enterprise"]
    assert [round(group["epsilon"], 2) for group in groups.values()] == [8, 6, 4]
    assert groups["enterprise"]["clip_norm"] < groups["team"]["clip_norm"] < groups["free"]["clip_norm"]
    assert abs(sum(group["weight"] for group in groups.values()) - 1) < 1e-9
