"""A private session over made users, on which a plugin that learns can be tried. No private record is read."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.data import portable
from harness.data.learning import Learner, Rule, rule_of
from harness.plugins import Answer, PluginError, Statistic, UserRecords
from harness.privacy import contributions
from harness.privacy.randomness import KEY_BYTES, Randomness
from harness.privacy.session import check_queries, noisy_answer
from harness.queries import Described


class TrialSession:
    """Answers the declared queries, each for one statistic, with noise that is known. Not private: for made users."""

    def __init__(self, learner: Learner, users: Sequence[UserRecords], draw: int) -> None:
        """Takes the users, and which of the possible draws of noise it is.

        Raises:
            PluginError: The queries can't be declared like that.
        """
        self._queries = {query.name: query for query in check_queries(learner.queries)}
        self._users = users
        self._randomness = Randomness(draw.to_bytes(KEY_BYTES, "big"))
        self._asked: dict[str, object] = {}

    def ask(self, query: str, statistic: Statistic) -> Answer:
        """The noisy answer to a declared query."""
        if query not in self._queries:
            raise PluginError(f'asks the query "{query}", which is not among its `queries`')
        one = _described(statistic)
        if self._asked.setdefault(query, one) != one:
            raise PluginError(f'asks the query "{query}" for two statistics')
        values = (portable.rebuild(one, Statistic).value(user) for user in self._users)  # type: ignore[type-abstract]
        asked = self._queries[query]
        return noisy_answer(asked, contributions.total(asked, values), self._randomness, query)


def learn(learner: Learner, users: Sequence[UserRecords], draw: int) -> Rule:
    """The rule or score that `learner` learns from made users, rebuilt from what travels of it.

    Raises:
        PluginError: It asks what it may not, or gives no rule, or one that can't be rebuilt.
    """
    rule = rule_of(learner, learner.fit(TrialSession(learner, users, draw)))
    return portable.rebuild(_described(rule), type(rule))


def _described(thing: object) -> Described:
    """Without the version of its code, for which files are read."""
    path, attributes = portable.parts(thing)
    return Described(path, json.dumps(attributes, sort_keys=True), "")
