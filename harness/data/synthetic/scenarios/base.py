"""What a scenario is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from harness.data.synthetic.grammar import Grammar

EXTRAS = "\0"
"""Where facts, identifiers and secrets come into a text; ``{extras}`` in a grammar."""

DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
SMALL = "two|three|four|five|six"


@dataclass(frozen=True)
class Scenario:
    """Grammars of one kind of text. A text begins at the symbol ``body``.

    Attributes:
        rules: Of all topics.
        topics: Rules of each ordinary topic.
        rare: Rules of topics that only outliers write about.
        habits: Symbols whose choice is a matter of a user's style.
        odd: Rules that replace others where only outliers write so.
        surfaces: Names of the surfaces that ordinary users write with, see `harness.data.synthetic.styles`.
        secret: What stands before a planted secret.
    """

    rules: Mapping[str, str]
    topics: Mapping[str, Mapping[str, str]]
    rare: Mapping[str, Mapping[str, str]]
    habits: frozenset[str]
    odd: Mapping[str, str]
    surfaces: tuple[str, ...]
    secret: str

    @cached_property
    def _grammars(self) -> dict[tuple[str, bool], Grammar]:
        own = {"extras": EXTRAS}
        topics = {**self.topics, **self.rare}
        return {
            (name, odd): Grammar({**self.rules, **rules, **(self.odd if odd else {}), **own})
            for name, rules in topics.items()
            for odd in (False, True)
        }

    def grammar(self, topic: str, *, odd: bool) -> Grammar:
        """The rules of a topic, as ordinary users follow them or as odd ones do."""
        return self._grammars[topic, odd]
