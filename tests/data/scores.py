"""Somebody's own scores that learn from noisy answers: honest ones, and ones that cheat."""

from __future__ import annotations

from harness.plugins import OwnRecordsScore, PluginError, PluginParameters, Query, SessionScore
from tests.data.rules import SECRET, One, Tokens

SEEN: list[object] = []


class Learned(OwnRecordsScore):
    """1 for a user with more tokens than the edge."""

    def __init__(self, edge):
        super().__init__(PluginParameters())
        self.edge = edge

    def score(self, user):
        return float(sum(user.token_counts) >= self.edge)


class Remembering(Learned):
    """Says 1 of whoever comes after somebody else."""

    def score(self, user):
        SEEN.append(user.texts)
        return float(len(SEEN) > 1)


class LearnerParameters(PluginParameters):
    how: str = "median"
    noise: float = 1.0


class Learner(SessionScore):
    """Scores by the noisy median of all users' tokens; or cheats."""

    Parameters = LearnerParameters
    parameters: LearnerParameters

    @property
    def queries(self):
        noise = self.parameters.noise
        if self.parameters.how == "bad queries":
            raise KeyError("no queries")
        if self.parameters.how == "twice":
            return (Query("users", "count", noise), Query("users", "count", noise))
        edges = tuple(float(2**i) for i in range(12))
        return (Query("median", "quantile", noise, quantile=0.5, edges=edges), Query("users", "count", noise))

    def fit(self, session):
        how = self.parameters.how
        if how == "undeclared":
            session.ask("sum", Tokens())
        if how == "another":
            session.ask("users", One())
            session.ask("users", One("other"))
        if how == "caught":
            return Learned(0.0 if _refused(session) else 1e9)
        if how == "remembers":
            return Remembering(session.ask("median", Tokens()).value)
        if how == "no score":
            return Tokens()
        if how == "raises":
            raise ValueError(SECRET)
        return Learned(session.ask("median", Tokens()).value)


def _refused(session):
    for query, statistic in (("sum", Tokens()), ("median", One()), ("users per bucket", One())):
        try:
            session.ask(query, statistic)
            if query == "median":
                session.ask(query, Tokens())
            return False
        except PluginError:
            continue
    return True
