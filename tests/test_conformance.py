"""What a third party's tests call."""

from __future__ import annotations

import warnings
from typing import ClassVar

import pytest

from harness import conformance, plugins
from harness.conformance import ConformanceError, check_noise_policy, check_score, check_segmenter, check_source
from harness.plugins import (
    Access,
    MixedSegmenter,
    OwnRecordsScore,
    OwnRecordsSegmenter,
    Proposal,
    PublicSegmenter,
    Query,
    SessionSegmenter,
)
from tests.data.rules import Learner, One, TokenRule


class Stateful(OwnRecordsSegmenter):
    segments = ("first", "later")
    seen = 0

    def assign(self, user):
        self.seen += 1
        return "first" if self.seen == 1 else "later"


class Foreign(OwnRecordsSegmenter):
    segments = ("a",)

    def assign(self, user):
        return "b"


class Hashing(OwnRecordsSegmenter):
    segments = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def assign(self, user):
        return str(hash(str(user.texts)) % 10)


class Reading(OwnRecordsScore):
    def score(self, user):
        with open("/etc/hosts") as stream:
            return len(stream.read()) * 0.0


class Loud(OwnRecordsScore):
    def score(self, user):
        return float(len(user.texts))


class Calling(OwnRecordsScore):
    def score(self, user):
        import torch  # noqa: F401

        return 0.0


class Printing(OwnRecordsSegmenter):
    segments = ("a",)

    def assign(self, user):
        print(user.texts[:1])
        return "a"


class Warning_(OwnRecordsScore):
    def score(self, user):
        warnings.warn(str(user.texts[:1]), stacklevel=1)
        return 0.0


class Misplaced(OwnRecordsSegmenter):
    access = Access.PUBLIC
    segments = ("a",)

    def assign(self, user):
        return "a"


class Peeking(PublicSegmenter):
    columns = ("plan",)
    segments = ("a", "b")

    def assign(self, attributes):
        return "a" if attributes.get("region") else "b"


class Straying(MixedSegmenter):
    columns = ("plan",)
    segments = ("a", "b")

    def assign(self, user):
        return "a" if user.attributes.get("region") else "b"


class Unannounced(OwnRecordsSegmenter):
    segments = ()

    def assign(self, user):
        return ""


class _Learning(SessionSegmenter):
    segments = ("little", "much")
    queries = (Query("users", "count", 1.0),)

    def fit(self, session):
        return TokenRule(session.ask("users", One()).value)


class Curious(_Learning):
    def fit(self, session):
        return TokenRule(session.ask("tokens", One()).value)


class Twice(_Learning):
    def fit(self, session):
        return TokenRule(session.ask("users", One("a")).value + session.ask("users", One("b")).value)


class Wavering(_Learning):
    fits: ClassVar[list[int]] = []

    def fit(self, session):
        self.fits.append(1)
        return TokenRule(float(len(self.fits)))


class Holding(_Learning):
    def fit(self, session):
        rule = TokenRule(1.0)
        rule.session = session
        return rule


class Ruleless(_Learning):
    def fit(self, session):
        return "much"


class Undeclared(_Learning):
    queries = ()


class Renaming(_Learning):
    segments = ("few", "many")


class Uneven(plugins.NoisePolicy):
    """Equal targets are asked for, and the first group by name gets less."""

    def propose(self, groups, epsilon):
        first = min(g.name for g in groups)
        return Proposal({g.name: epsilon / (1 + (g.name == first)) for g in groups})


class Lopsided(plugins.NoisePolicy):
    """Proposes nothing for one group."""

    def propose(self, groups, epsilon):
        return Proposal({g.name: epsilon for g in groups if g.name != "paid"})


class Greedy(plugins.NoisePolicy):
    def propose(self, groups, epsilon):
        return Proposal({g.name: max(epsilon, 5.0) for g in groups})


class Ordered(plugins.NoisePolicy):
    def propose(self, groups, epsilon):
        return Proposal({g.name: epsilon / (i + 1) for i, g in enumerate(groups)})


def test_the_built_in_plugins_conform(tmp_path):
    """Break: `deepcopy`-free state, a fixed budget, or an unordered answer in any one of them."""
    check_segmenter(plugins.segmentation.get("none"))
    check_segmenter(plugins.segmentation.get("attribute"), {"column": "plan"})
    check_segmenter(plugins.segmentation.get("usage"), {"edges": (3, 12)})
    check_score(plugins.sensitivity.get("volume"), {"low": 10, "high": 1000})
    targets = {"free": 8.0, "paid": 4.0, "other": 2.0}
    for name in ("scale", "sample"):
        equal = {"epsilon": dict.fromkeys(targets, 8.0)}
        check_noise_policy(plugins.noise.get(name), {"epsilon": targets}, equal=equal)
    check_noise_policy(plugins.noise.get("uniform"))
    check_noise_policy(plugins.noise.get("none"))
    path = tmp_path / "posts.jsonl"
    path.write_text('{"user": "ann", "text": "a", "plan": "free"}\n{"user": "bob", "text": ""}\nbroken\n')
    check_source(plugins.source.get("jsonl"), {"path": str(path)}, attributes=["plan"])


@pytest.mark.parametrize(
    ("check", "cls", "message"),
    [
        (check_segmenter, Stateful, "it keeps state"),
        (check_segmenter, Foreign, "'b', which is not among `segments`"),
        (check_segmenter, Hashing, "answers otherwise in another process"),
        (check_score, Reading, "reaches for the file hosts"),
        (check_score, Loud, r"a score is a number in \[0, 1\]"),
        (check_score, Calling, "reaches for .*torch"),
        (check_segmenter, Printing, "reaches for the console"),
        (check_score, Warning_, "reaches for the console"),
        (check_score, Foreign, "is no subclass of SensitivityScore"),
        (check_segmenter, Misplaced, "must have the access tier one user's records at a time"),
        (check_segmenter, Peeking, 'looked at the column "region", which it had not declared'),
        (check_segmenter, Straying, 'looked at the column "region", which it had not declared'),
        (check_segmenter, Unannounced, "must announce at least one segment"),
        (check_segmenter, Curious, 'Curious asks the query "tokens", which is not among its `queries`'),
        (check_segmenter, Twice, 'Twice asks the query "users" for two statistics'),
        (check_segmenter, Wavering, "Wavering learns another rule from the same answers"),
        (check_segmenter, Holding, "Holding an attribute is a TrialSession"),
        (check_segmenter, Ruleless, "Ruleless gives a str in place of an own-records rule"),
        (check_segmenter, Undeclared, "Undeclared a session declares from 1 to 1000 queries"),
        (check_segmenter, Renaming, "which is not among `segments`"),
        (check_noise_policy, Lopsided, 'proposes None for "paid" under the budget 8'),
        (check_noise_policy, Greedy, "under the budget 4"),
        (check_noise_policy, Ordered, "when the groups come in another order"),
    ],
)
def test_what_does_not_conform_is_said_so(check, cls, message):
    """Break: any one of the checks taken out."""
    with pytest.raises(ConformanceError, match=message):
        check(cls)
    assert issubclass(conformance.ConformanceError, AssertionError)


def test_a_segmenter_that_learns_conforms():
    """Red when a rule's answers are compared over other draws of the noise here and there."""
    check_segmenter(Learner)
    check_segmenter(_Learning)


def test_equal_targets_must_give_uniform():
    """Break: the comparison of the targets taken out."""
    with pytest.raises(ConformanceError, match="different targets where they should be equal"):
        check_noise_policy(Uneven, equal={})
