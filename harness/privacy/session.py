"""The private session: the only door to statistics across users.

Queries are declared before it opens, and each is answered once: the users' clipped contributions are summed exactly,
and one Gaussian of `Query.noise_multiplier` times the l2 sensitivity is added. So an answered query is a
`GaussianDpEvent(noise_multiplier)` for adding, removing or emptying one user, and the session composes all of its
declared queries, asked or not. Queries and statistics may depend on earlier answers (adaptive composition): their
noise multipliers can't. Privacy is computational: the noise comes from a generator (see `harness.privacy.randomness`)
and is drawn in floating point, then rounded to the grid of the sums.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from harness.errors import MachineError
from harness.files import locked, private_folder, write_private
from harness.privacy import contributions
from harness.privacy.randomness import Randomness
from harness.queries import Answer, Described, Query
from harness.registry import PluginError

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

PURPOSE = "session"
MOST_QUERIES = 1000


class Contributors(Protocol):
    """All users of a session. The users without records are left out: they contribute nothing."""

    @property
    def fingerprint(self) -> str:
        """Keyed digest of the data and of who is asked; answers are cached under it."""
        ...

    def values(self, statistic: Described) -> Iterable[object]:
        """What the statistic says of each user with records, one user at a time. Private, and not yet clipped."""
        ...


def check_queries(queries: Sequence[Query]) -> tuple[Query, ...]:
    """The declared queries of a session.

    Raises:
        PluginError: Something else was declared, none, too many, or two of one name.
    """
    declared = tuple(queries)
    if not all(type(query) is Query for query in declared):
        raise PluginError("`queries` must be a tuple of Query")
    if not 1 <= len(declared) <= MOST_QUERIES:
        raise PluginError(f"a session declares from 1 to {MOST_QUERIES} queries")
    names = [query.name for query in declared]
    for name in names:
        if names.count(name) > 1:
            raise PluginError(f'the query "{name}" is declared twice')
    return declared


def charge_of(queries: Sequence[Query]) -> DpEvent:
    """What a session costs every user: the composition of all declared queries."""
    from dp_accounting.dp_event import ComposedDpEvent, GaussianDpEvent

    return ComposedDpEvent([GaussianDpEvent(query.noise_multiplier) for query in check_queries(queries)])


def multiplier_of(queries: Sequence[Query]) -> float:
    """The noise multiplier of the one Gaussian that costs as much as all queries together (exactly)."""
    return 1 / math.sqrt(math.fsum(query.noise_multiplier**-2 for query in check_queries(queries)))


def digest_of(query: Query, statistic: Described, fingerprint: str) -> str:
    """The address of an answer: everything that it depends on but the noise."""
    parts = (json.dumps(query.document(), sort_keys=True), *asdict(statistic).values(), fingerprint)
    found = hashlib.sha256()
    for part in parts:
        content = part.encode(errors="surrogatepass")
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


def noisy_answer(query: Query, exact: Sequence[int], randomness: Randomness, digest: str) -> Answer:
    """Adds the noise.

    Args:
        query: What was asked.
        exact: [`contributions.size_of`] the exact sums in grains. Private.
        randomness: The run's.
        digest: Of the query; the noise is a function of it, so that one draw never meets two sums.
    """
    std = query.noise_multiplier * contributions.GRAINS
    noise = randomness.normals(PURPOSE, 0, digest, 0, len(exact)) * std
    grain = contributions.grain_of(query)
    # Whole numbers: rounding the noise rounds the noisy sum, and shows nothing more.
    noisy = [float(number + round(float(drawn))) * grain for number, drawn in zip(exact, noise, strict=True)]
    return contributions.answer(query, np.array(noisy))


def to_document(answer: Answer) -> dict[str, Any]:
    """An answer for JSON; every number comes back bit by bit."""
    return asdict(answer)


def from_document(document: dict[str, Any]) -> Answer:
    """The answer of a JSON document."""
    value = document["value"]
    shown = tuple(value) if isinstance(value, list) else float(value)
    return Answer(str(document["query"]), shown, float(document["std"]), tuple(map(float, document["noisy"])))


class AnswerFolder:
    """Answers of earlier runs, by digest. Who asks the same of the same data gets the same answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def settle(self, digest: str, make: Answer | None = None) -> Answer | None:
        """The kept answer; else `make`, which is then kept. Of two runs at once, the first one's answer counts."""
        path = self._folder / f"{digest}.json"
        private_folder(self._folder)
        with locked(self._folder / "answers.lock"):
            if path.exists():
                return from_document(read_record(path))
            if make is not None:
                write_private(path, json.dumps(to_document(make), allow_nan=False).encode())
        return make


class DeclaredSession:
    """Answers the declared queries of one run, each for one statistic.

    Every answer is durable before anybody sees it: a resumed run is told the same, bit by bit.
    """

    def __init__(
        self,
        queries: Sequence[Query],
        contributors: Contributors,
        randomness: Randomness,
        record: Path,
        kept: AnswerFolder | None = None,
    ) -> None:
        """Opens it, or opens it again.

        Args:
            queries: Everything that may be asked.
            contributors: Whom it is asked of.
            randomness: The run's.
            record: The file of this run's answers (0600), inside its private folder.
            kept: Answers of other runs; None: there are none.

        Raises:
            PluginError: The queries can't be declared like that.
            MachineError: The record is damaged.
        """
        self.queries = check_queries(queries)
        self._by_name = {query.name: query for query in self.queries}
        self._contributors = contributors
        self._randomness = randomness
        self._record = record
        self._kept = kept
        self._open = True
        self._answers = read_record(record) if record.exists() else {}

    def answer(self, name: object, statistic: Described) -> Answer:
        """The noisy answer to a declared query; asked again with the same statistic, the same answer.

        Raises:
            PluginError: The session is closed, the query was not declared, or was answered for another statistic.
        """
        if not self._open:
            raise PluginError("the session is closed")
        query = self._by_name.get(name) if isinstance(name, str) else None
        if query is None:
            raise PluginError("this query was not declared")
        digest = digest_of(query, statistic, self._contributors.fingerprint)
        known = self._answers.get(query.name)
        if known is not None:
            if known["digest"] != digest:
                raise PluginError(f'the query "{query.name}" was answered already, for another statistic or other data')
            return from_document(known["answer"])
        found = self._kept.settle(digest) if self._kept is not None else None
        if found is None:
            exact = contributions.total(query, self._contributors.values(statistic))
            found = noisy_answer(query, exact, self._randomness, digest)
            if self._kept is not None:
                found = self._kept.settle(digest, found) or found
        self._answers[query.name] = {"digest": digest, "answer": to_document(found)}
        private_folder(self._record.parent)
        write_private(self._record, json.dumps(self._answers, allow_nan=False).encode())
        return found

    def close(self) -> None:
        """Nothing is answered from here on."""
        self._open = False


def read_record(path: Path) -> Any:
    """A JSON document of a session, in a private folder.

    Raises:
        MachineError: It is damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise MachineError(f"{path} is damaged")
    return found
