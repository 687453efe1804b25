"""Binds the training users of a corpus to a private session, and runs who learns from it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.cache import machine_errors, secret_key
from harness.data import asking, guard, portable
from harness.data.learning import Learner, kind_of, learnt, rule_of
from harness.data.quiet import LOG, Quiet
from harness.data.rooms import UserRoom, ask_all, run_fit
from harness.data.store import Corpus
from harness.data.views import Views, made_view, seen
from harness.errors import ArgumentError
from harness.files import private_folder, write_private
from harness.packages import name_of
from harness.plugins import PluginError, Statistic, UserRecords
from harness.privacy.randomness import Randomness
from harness.privacy.session import AnswerFolder, DeclaredSession, read_record
from harness.queries import Answer, Described, Query

RECORD = "session.json"
RULE = "rule.json"
ANSWERS = "answers"
USERS = "users"
GROUP_SIZES = "group sizes"
EXAMPLES = "examples per user"
OWN_VERSION = "1"
"""Of the statistics below; answers kept for another version are not found."""

Ints = npt.NDArray[np.int64]


def users_query(noise_multiplier: float, name: str = USERS) -> Query:
    """How many training users have records."""
    return Query(name, "count", noise_multiplier)


def group_sizes_query(groups: Sequence[str], noise_multiplier: float, name: str = GROUP_SIZES) -> Query:
    """How many training users with records are in each privacy group: one query, since each user is in one."""
    return Query(name, "histogram", noise_multiplier, domain=tuple(groups))


def examples_query(
    noise_multiplier: float, *, largest: int = 2**16, quantile: float = 0.5, name: str = EXAMPLES
) -> Query:
    """A quantile of the examples per training user with records, between the public edges 1, 2, 4, … `largest`."""
    edges = [1]
    while edges[-1] < largest:
        edges.append(2 * edges[-1])
    # A half below each whole number, so that a user with exactly so many lies above the edge.
    return Query(name, "quantile", noise_multiplier, quantile=quantile, edges=tuple(e - 0.5 for e in edges))


@dataclass(frozen=True)
class _Users:
    """The users that a session is about, as it sees them: one at a time, and only those with records."""

    corpus: Corpus
    users: Ints
    fingerprint: str
    private_dir: Path
    refused: tuple[Path, ...]
    who: list[str]
    trusted: list[bool]
    columns: dict[Described, Sequence[object]]
    views: Views | None = None

    def values(self, statistic: Described) -> Iterable[object]:
        """What the statistic says of each user, not yet clipped."""
        if statistic in self.columns:
            return iter(self.columns[statistic])
        return self._here(statistic) if self.trusted[-1] else self._in_room(statistic)

    def _records(self) -> Iterator[UserRecords]:
        return (seen(self.corpus.own_records(int(user)), int(user), self.views) for user in self.users)

    def _made(self) -> Iterator[UserRecords]:
        made = _made(self.corpus.has_times)
        if self.views is None:
            return iter(made)
        width = self.views.width
        return (replace(u, model=made_view(i, u.examples, width)) for i, u in enumerate(made))

    def _here(self, statistic: Described) -> Iterator[object]:
        with Quiet(self.private_dir):
            for user in self._records():
                yield _contributed(statistic, user)

    def _in_room(self, statistic: Described) -> Iterator[object]:
        """Whatever fails on somebody's records contributes nothing: that it failed would tell of them."""
        who = self.who[-1]

        def room() -> UserRoom:
            return UserRoom(statistic, "value", who=who, private_dir=self.private_dir, refused=self.refused)

        with room() as first:
            if any(first.ask(user).failed for user in self._made()):
                raise ArgumentError(
                    f"the plugin {who} raised an error, or took too long, for a made user"
                    f"; see {self.private_dir.name}/{LOG}"
                )
        for reply in ask_all(room, self._records()):
            yield reply.answer


def _contributed(statistic: Described, user: UserRecords) -> object:
    """What a built-in statistic says of one user; a failure contributes nothing, as in a room."""
    made = portable.rebuild(statistic, Statistic)  # type: ignore[type-abstract]
    with contextlib.suppress(Exception):
        return made.value(user)
    return None


_MADE = (
    UserRecords(("A made text.", "Another one, of the same made user."), (4, 9), 1),
    UserRecords(("x",), (1,), 1),
    UserRecords(("",), (0,), 0),
)
"""Shown to a statistic before any user: what always fails is said, without a private record having a part in it."""


def _made(times: bool) -> tuple[UserRecords, ...]:
    """Users that nobody is, who know when they wrote, or some of it, where the spec names a column of times."""
    known = (1.7e9, None, None)
    return tuple(replace(user, times=known[i : i + len(user.texts)] if times else ()) for i, user in enumerate(_MADE))


class Session:
    """The private session of a run, bound to its training users."""

    def __init__(self, declared: DeclaredSession, users: _Users, rule: str = RULE) -> None:
        """As `open_session` makes it."""
        self._declared, self._users, self._rule = declared, users, rule

    def count_users(self, query: str = USERS) -> Answer:
        """Answers `users_query`."""
        return self._column(query, "users", "", [1] * len(self._users.users))

    def group_sizes(self, groups: npt.NDArray[np.integer], query: str = GROUP_SIZES) -> Answer:
        """Answers `group_sizes_query`.

        Args:
            groups: [users of the corpus] the place of each user's group in the query's domain; -1: in none. Private,
                and each user's own: it may depend on nobody else's records.
            query: The name of the query.
        """
        domain = next((q.domain for q in self._declared.queries if q.name == query), ())
        own = [int(group) for group in groups[self._users.users]]
        names = [domain[group] if 0 <= group < len(domain) else None for group in own]
        return self._column(query, "group sizes", json.dumps(own), names)

    def examples_per_user(self, query: str = EXAMPLES) -> Answer:
        """Answers `examples_query`."""
        counts = [int(count) for count in self._users.corpus.n_examples[self._users.users]]
        return self._column(query, "examples", "", counts)

    def score_quantiles(self, values: npt.NDArray[np.float64]) -> tuple[float, ...]:
        """Answers every declared query, each a `tiers.score_query`, in their order.

        Args:
            values: [users of the corpus] the combined score of each user. Private, and each user's own: a function of
                their records, constants and earlier answers.
        """
        own = [float(value) for value in values[self._users.users]]
        queries = self._declared.queries
        answers = [self._column(query.name, "combined scores", json.dumps(own), own) for query in queries]
        return tuple(float(answer.value) for answer in answers)  # type: ignore[arg-type]

    def fit(self, learner: Learner) -> Described:
        """Runs a plugin's `fit`; what it asks is answered, and nothing afterwards.

        The rule is kept in the private folder: a resumed run is given the same one, and runs nothing.

        Returns:
            The own-records rule or score, as data: who trusts it with records rebuilds it in a user room.

        Raises:
            ArgumentError: It fails, asks what it had not declared, or gives no rule.
        """
        path = self._users.private_dir / self._rule
        thing = asking.described(learner)
        kept = read_record(path) if path.exists() else {}
        if kept.get("of") == asdict(thing):
            self._declared.close()
            return Described(**kept["rule"])
        trusted = asking.is_built_in(learner)
        self._users.trusted.append(trusted)
        self._users.who.append(name_of(type(learner)))
        if trusted:
            rule = self._fit_here(learner)
        else:
            users, kind = self._users, kind_of(learner)
            where, refused = users.private_dir, users.refused
            rule = run_fit(thing, self._declared, who=users.who[-1], private_dir=where, kind=kind, refused=refused)
        self._declared.close()
        write_private(path, json.dumps({"of": asdict(thing), "rule": asdict(rule)}).encode())
        return rule

    def _fit_here(self, learner: Learner) -> Described:
        found = guard.guarded(learner, lambda: learner.fit(_Local(self._declared)), self._users.private_dir)
        with contextlib.suppress(PluginError):
            return portable.describe(rule_of(learner, found))
        raise ArgumentError(f"the plugin {self._users.who[-1]} gave no {learnt(kind_of(learner))}")

    def _column(self, query: str, name: str, own: str, values: Sequence[object]) -> Answer:
        """A question of the harness itself, its statistic computed here."""
        keyed = hmac.new(self._users.fingerprint.encode(), own.encode(), hashlib.sha256).hexdigest()
        statistic = Described(f"harness.data.sessions:{name}", json.dumps({"own": keyed}), OWN_VERSION)
        self._users.columns[statistic] = values
        try:
            return self._declared.answer(query, statistic)
        except PluginError as error:
            raise ArgumentError(f"session: {error.message}") from None


class _Local:
    """The session, as a built-in plugin's `fit` sees it."""

    def __init__(self, declared: DeclaredSession) -> None:
        self._declared = declared

    def ask(self, query: str, statistic: Statistic) -> Answer:
        """The noisy answer to a declared query."""
        return self._declared.answer(query, portable.describe(statistic))


def open_session(
    corpus: Corpus,
    users: Ints,
    queries: Sequence[Query],
    randomness: Randomness,
    private_dir: Path,
    cache_dir: Path,
    record: str = RECORD,
    rule: str = RULE,
    views: Views | None = None,
) -> Session:
    """Opens the session of a run, or opens it again after a crash.

    Its whole charge (`harness.privacy.session.charge_of`) must be reserved before.

    Args:
        corpus: Whose users it is about.
        users: The numbers of the training users.
        queries: Everything that may be asked in it, by one plugin or by the harness itself.
        randomness: The run's.
        private_dir: Of the run: gets the record of the answers.
        cache_dir: Keeps answers for other runs on the same data.
        record: Name of the file of the answers.
        rule: Name of the file of what is learnt.
        views: How the base model sees the users; for a plugin that uses it, and None for any other.

    Raises:
        ArgumentError: The queries can't be declared like that.
        MachineError: The answers so far are damaged, or a folder can't be used.
    """
    with machine_errors(f"the cache folder {cache_dir}"):
        private_folder(cache_dir)
        asked = np.ascontiguousarray(users, dtype=np.int64)
        fingerprint = hmac.new(secret_key(cache_dir), corpus.fingerprint.encode() + b"\0", hashlib.sha256)
        fingerprint.update(asked.tobytes())
        if views is not None:  # another model's views of the same users are other data
            fingerprint.update(b"\0" + views.identity.encode())
    with_records = asked[corpus.n_records[asked] > 0]
    refused = (cache_dir, corpus.folder)
    who = _Users(
        corpus, with_records, fingerprint.hexdigest(), private_dir, refused, ["the harness"], [False], {}, views
    )
    kept = AnswerFolder(cache_dir / ANSWERS)
    try:
        return Session(DeclaredSession(queries, who, randomness, private_dir / record, kept), who, rule)
    except PluginError as error:
        raise ArgumentError(f"session: {error.message}") from None
