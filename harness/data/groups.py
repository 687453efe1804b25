"""Puts users into segments. A rule is handed what its access tier may see, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.data import asking, guard
from harness.data.holdout import is_holdout
from harness.data.quiet import Quiet
from harness.data.sources.base import Columns, RecordSource
from harness.data.users import Users
from harness.data.views import Views, seen, shown
from harness.errors import ArgumentError, UserError
from harness.packages import name_of as described
from harness.plugins import (
    MixedSegmenter,
    OwnRecordsSegmenter,
    PluginError,
    PublicSegmenter,
    Segmenter,
    SessionSegmenter,
    UserRecords,
)
from harness.spec.models import DataBlock

if TYPE_CHECKING:
    from harness.data.sessions import Session
    from harness.data.store import Corpus

_MOST_SEGMENTS = int(np.iinfo(np.int16).max)


@dataclass(frozen=True)
class PublicCounts:
    """What can be known of the users without reading a text.

    Attributes:
        users_train: Number of users that are trained on.
        users_holdout: Number of users held out.
        segments: Number of training users per segment; None where the rule is not public.
        domain: The values of the rule's public columns over all users, sorted.
        segmenter: The rule, bound to that domain where it is public.
    """

    users_train: int
    users_holdout: int
    segments: dict[str, int] | None
    domain: Mapping[str, tuple[str, ...]]
    segmenter: Segmenter


def public_counts(
    source: RecordSource,
    columns: Columns,
    data: DataBlock,
    segmenter: Segmenter,
    *,
    private_dir: Path | None = None,
) -> PublicCounts:
    """Counts users by name and declared public columns alone; what `uudp plan` knows of the data.

    Args:
        source: Where the records come from; only `RecordSource.public` is called.
        columns: What is read of them.
        data: Gives the name and the hold-out fraction.
        segmenter: The rule of the spec.
        private_dir: Gets the details of a plugin's failure; None: nobody does.

    Raises:
        ArgumentError: The data can't be read, or the rule reads an undeclared column or fails.
        PluginError: A public rule can't be bound to the values that occur.
    """
    users = Users(columns.attributes)
    for user, attributes in _public(source, columns, private_dir):
        users.add(user, attributes)
    trained = len(users)
    if source.evaluation is not None:
        known = {user for user, _ in users.sorted()}
        for user, attributes in _public(source.evaluation, columns, private_dir):
            if user not in known:  # as in the corpus, where these users' records are not evaluated on
                users.add(user, attributes)
    fraction = data.holdout.users
    held = [number >= trained or is_holdout(user, data.name, fraction) for user, number in users.sorted()]
    train, holdout = held.count(False), held.count(True)
    if not isinstance(segmenter, PublicSegmenter):
        return PublicCounts(train, holdout, None, {}, segmenter)
    _check_columns(segmenter, columns.attributes)
    attributes_of_all = [users.attributes(number) for _, number in users.sorted()]
    domain = {
        column: tuple(sorted({value for one in attributes_of_all if (value := one[column]) is not None}))
        for column in segmenter.columns
    }
    bound = _bound(segmenter, domain)
    names = _named(bound, bound.segments or ())
    assigned = _assign_public(bound, iter(attributes_of_all), names, private_dir)
    counts = dict.fromkeys(names, 0)
    for segment, out in zip(assigned, held, strict=True):
        counts[names[segment]] += not out
    return PublicCounts(train, holdout, counts, domain, bound)


def _bound(segmenter: PublicSegmenter, domain: Mapping[str, Sequence[str]]) -> PublicSegmenter:
    """The rule over the values that occur. What somebody's own rule raises may quote them: its type must do."""
    what = "gives no public rule"
    try:
        with Quiet(None):
            bound = segmenter.bind(domain)
        if isinstance(bound, PublicSegmenter):
            return bound
    except (UserError, PluginError):
        raise
    except (Exception, SystemExit) as error:
        what = f"fails ({type(error).__name__})"
    raise ArgumentError(f"segmentation: {described(type(segmenter))} {what} for the values of its columns")


def _public(
    source: RecordSource, columns: Columns, private_dir: Path | None
) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    items = guard.guarded(source, lambda: iter(source.public(columns)), private_dir)
    return guard.guarded_iteration(source, items, private_dir)


def assign_groups(
    corpus: Corpus,
    segmenter: Segmenter,
    segments: Sequence[str],
    *,
    private_dir: Path | None = None,
    session: Session | None = None,
    views: Views | None = None,
) -> npt.NDArray[np.int16]:
    """The segment of every user, as an index into `segments`. Private unless the rule is public.

    A rule is asked of each user afresh, so that it can keep nothing of one for the next: see `asking`.

    Args:
        corpus: The users.
        segmenter: The rule, bound if it is public; or what learns one from a session.
        segments: The public names of all segments.
        private_dir: Gets the details of a plugin's failure; None: nobody does.
        session: What a `SessionSegmenter` asks; its charge is reserved.
        views: How the base model sees the users; for a rule that uses it.

    Raises:
        ArgumentError: The rule fails, or names an unknown segment. The message names the plugin alone.
    """
    names = _named(segmenter, segments)
    if isinstance(segmenter, PublicSegmenter):
        _check_columns(segmenter, corpus.attribute_names)
        found = _assign_public(segmenter, (corpus.attributes(i) for i in range(corpus.n_users)), names, private_dir)
        return np.array(found, dtype=np.int16)
    if isinstance(segmenter, MixedSegmenter):
        _check_columns(segmenter, corpus.attribute_names)
    rule = None
    if isinstance(segmenter, SessionSegmenter):
        if session is None:
            raise ArgumentError(f"segmentation: {described(type(segmenter))} needs a private session")
        rule = session.fit(segmenter)
    elif not isinstance(segmenter, OwnRecordsSegmenter):
        raise ArgumentError(f"segmentation: {described(type(segmenter))} has no access tier")
    index = {name: i for i, name in enumerate(names)}
    users = _own_records(corpus, segmenter, shown(segmenter, views))
    refused = (corpus.folder,)
    answers = asking.ask_each(segmenter, "assign", users, private_dir, rule=rule, refused=refused)
    places = (_place(segmenter, answer, index, private_dir) for answer in answers)
    return np.fromiter(places, dtype=np.int16, count=corpus.n_users)


def _own_records(corpus: Corpus, segmenter: Segmenter, views: Views | None) -> Iterator[UserRecords]:
    """Each user's records, with the view if there is one; and the public columns that the rule declares, if any."""
    columns = segmenter.columns if isinstance(segmenter, MixedSegmenter) else ()
    for user in range(corpus.n_users):
        records = seen(corpus.own_records(user), user, views)
        if columns:
            attributes = corpus.attributes(user)
            records = replace(records, attributes={column: attributes[column] for column in columns})
        yield records


def _assign_public(
    segmenter: PublicSegmenter,
    attributes: Iterator[Mapping[str, str | None]],
    names: tuple[str, ...],
    private_dir: Path | None,
) -> list[int]:
    """Asks once per distinct combination of values: users alike in them can't but be in one segment."""
    index = {name: i for i, name in enumerate(names)}
    columns = segmenter.columns
    known: dict[tuple[str | None, ...], int] = {}
    found: list[int] = []
    for one in attributes:
        values = tuple(one[column] for column in columns)
        if values not in known:
            seen = dict(zip(columns, values, strict=True))
            known[values] = _ask(segmenter, seen, index, private_dir)
        found.append(known[values])
    return found


def _ask(rule: PublicSegmenter, seen: Any, index: Mapping[str, int], private_dir: Path | None) -> int:
    """What a fresh copy of the rule says of one user, as a number."""
    answer = guard.guarded(rule, lambda: copy.deepcopy(rule).assign(seen), private_dir)
    return _place(rule, answer, index, private_dir)


def _place(rule: Segmenter, answer: object, index: Mapping[str, int], private_dir: Path | None) -> int:
    if not isinstance(answer, str) or answer not in index:
        raise guard.plugin_error(rule, "named a segment that it had not announced", repr(answer), private_dir)
    return index[answer]


def _named(segmenter: Segmenter, segments: Sequence[str]) -> tuple[str, ...]:
    names = tuple(segments)
    if not names or len(names) > _MOST_SEGMENTS or len(set(names)) != len(names):
        who = described(type(segmenter))
        raise ArgumentError(f"segmentation: {who} must announce between 1 and {_MOST_SEGMENTS} different segments")
    return names


def _check_columns(segmenter: PublicSegmenter | MixedSegmenter, declared: Sequence[str]) -> None:
    for column in segmenter.columns:
        if column not in declared:
            raise ArgumentError(f'segmentation: the column "{column}" is not among data.attributes')
