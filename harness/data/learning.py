"""Plugins that learn from noisy answers, and what each kind of them learns."""

from __future__ import annotations

from typing import Literal

from harness.plugins import OwnRecordsScore, OwnRecordsSegmenter, PluginError, SessionScore, SessionSegmenter

Learner = SessionSegmenter | SessionScore
Rule = OwnRecordsSegmenter | OwnRecordsScore
Kind = Literal["segmenter", "score"]

_KINDS: dict[Kind, tuple[type[Learner], type[Rule], str]] = {
    "segmenter": (SessionSegmenter, OwnRecordsSegmenter, "rule"),
    "score": (SessionScore, OwnRecordsScore, "score"),
}


def kind_of(learner: Learner) -> Kind:
    """Which kind of plugin it is, for a room."""
    return "score" if isinstance(learner, SessionScore) else "segmenter"


def base_of(kind: Kind) -> type[Learner]:
    """The class of all learners of a kind."""
    return _KINDS[kind][0]


def learnt(kind: Kind) -> str:
    """What `fit` gives, in words."""
    return f"own-records {_KINDS[kind][2]}"


def rule_of(learner: Learner, found: object) -> Rule:
    """What `learner.fit` gave, which must be of the right kind.

    Raises:
        PluginError: It gave something else.
    """
    kind = kind_of(learner)
    wanted = _KINDS[kind][1]
    if not isinstance(found, wanted):
        raise PluginError(f"gives a {type(found).__name__} in place of an {learnt(kind)}")
    return found
